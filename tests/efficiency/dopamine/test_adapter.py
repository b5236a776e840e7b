"""The adapter on whole models: freezing, modes, saving, folding, reports, compact models."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from torch import nn

from paperworks.efficiency.dopamine import GatedActivation, ModeRouter, TauGateConfig, add_taugate, load_taugate


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)
    ).eval()


def shuffled(adapted, seed=1):
    """Thresholds and gains away from the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapted.trainable_parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator))
    return adapted


X = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))


def language_model(name, **sizes):
    transformers = pytest.importorskip("transformers", reason="the networks of that library")
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(
            n_layer=2, n_embd=16, n_head=2, vocab_size=30, bos_token_id=1, eos_token_id=1, **sizes
        )
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=30, **sizes
    )
    return transformers.LlamaForCausalLM(config).eval()


IDS = {"input_ids": torch.arange(12).view(2, 6)}


# --- adding and removing ---


def test_two_numbers_a_unit_are_trained_and_nothing_else():
    base = mlp()
    adapted = add_taugate(base)
    trained = [p for p in base.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in adapted.trainable_parameters()}
    assert sum(p.numel() for p in trained) == 2 * (8 + 7)
    assert {k: tuple(v.shape) for k, v in adapted.state_dict_adapter().items()} == {
        "1.tau": (1, 8), "1.gain": (1, 8), "4.tau": (1, 7), "4.gain": (1, 7),
    }  # fmt: skip


def test_the_base_comes_back_bit_by_bit():
    base = mlp().train()
    base[0].weight.requires_grad_(False)
    want, modules = copy.deepcopy(base), list(base)
    adapted = shuffled(add_taugate(base))
    assert not torch.equal(adapted.model(X), want.eval()(X))
    adapted.set_mode(None)
    assert torch.equal(adapted.model(X), want(X))
    adapted.set_mode(torch.full((40,), -1))
    assert torch.equal(adapted.model(X), want(X))
    restored = adapted.remove()
    assert restored is base
    assert all(a is b for a, b in zip(base, modules, strict=True))
    assert [m.training for m in base.modules()] == [True] * 7
    assert [p.requires_grad for p in base.parameters()] == [False] + [True] * 5
    assert torch.equal(base.eval()(X), want(X))
    base.train()
    assert base[2].training, "train() is the model's own again"
    with pytest.raises(RuntimeError, match="removed"):
        adapted.set_mode("default")


def test_training_leaves_the_base_in_eval_mode():
    base = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    adapted = add_taugate(base)
    mean = base[1].running_mean.clone()
    base.train()
    assert base[2].training
    assert not base[1].training
    assert not base[3].training
    assert torch.equal(base(X), base(X)), "no dropout"
    assert torch.equal(base[1].running_mean, mean)
    adapted.remove()
    noisy = add_taugate(base, TauGateConfig(keep_dropout=True)).train()
    assert base[3].training
    assert not base[1].training
    assert not torch.equal(noisy(X), noisy(X))


def test_a_shared_activation_object_gets_a_gate_at_each_site():
    act = nn.GELU()
    base = nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 5), act, nn.Linear(5, 2)).eval()
    want = base(X)
    adapted = add_taugate(base)
    assert [site.width for site in adapted.sites] == [8, 5]
    assert torch.equal(adapted.remove()(X), want)
    assert base[1] is base[3] is act


def test_learning_lowers_the_loss_and_leaves_the_weights():
    base = mlp()
    weights = [p.clone() for p in base.parameters()]
    adapted = add_taugate(base).train()
    y = (X.sum(1) > 0).long()
    optimizer = torch.optim.Adam(adapted.trainable_parameters(), lr=2e-2)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(base(X), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(a, b) for a, b in zip(weights, adapted.remove().parameters(), strict=True))


def test_targets_by_name_suffix_and_pattern():
    gpt2 = language_model("gpt2")
    assert len(add_taugate(gpt2, TauGateConfig(targets=["mlp.act"])).sites) == 2
    gpt2 = language_model("gpt2")
    adapted = add_taugate(gpt2, TauGateConfig(targets=r".*h\.1\.mlp\.act"))
    assert list(adapted.gates) == ["transformer.h.1.mlp.act"]


class OwnForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()

    def forward(self, x):
        return self.act(x) * 2


def test_a_sample_tells_a_width_that_no_layer_tells():
    with pytest.raises(ValueError, match="sample"):
        add_taugate(OwnForward())
    assert add_taugate(OwnForward(), sample=X).sites[0].width == 6


@pytest.mark.parametrize(
    ("build", "config", "words"),
    [
        (mlp, {"targets": ["9"]}, "near: 1, 4"),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16), {}, "'activation' is a function"),
        (lambda: nn.Linear(2, 2), {}, "without activation modules"),
        (lambda: add_taugate(mlp()).model, {}, "already"),
        (mlp, {"sharpness": 0.0}, "sharpness"),
        (mlp, {"init": "x"}, "init"),
        (mlp, {"init": "calibrated"}, "sample"),
        (mlp, {"sparsity": -1.0}, "sparsity"),
    ],
)
def test_what_cannot_be_gated_is_said(build, config, words):
    with pytest.raises(ValueError, match=words):
        add_taugate(build(), TauGateConfig(**config))


# --- modes ---


def test_modes_switch_mix_and_combine():
    adapted = shuffled(add_taugate(mlp()))
    adapted.add_mode("other")
    shuffled(adapted, 5)
    outputs = {}
    for mode in ("default", "other", None):
        adapted.set_mode(mode)
        outputs[mode] = adapted.model(X)
    rows = torch.arange(40) % 3 - 1
    adapted.set_mode(rows)
    mixed = adapted.model(X)
    for row, mode in ((-1, None), (0, "default"), (1, "other")):
        torch.testing.assert_close(mixed[rows == row], outputs[mode][rows == row])
    assert torch.equal(mixed[rows == -1], outputs[None][rows == -1])
    adapted.combine("between", {"default": 0.25, "other": 0.75})
    tau = adapted.state_dict_adapter()["1.tau"]
    torch.testing.assert_close(tau[2], 0.25 * tau[0] + 0.75 * tau[1])
    adapted.combine("same", {"other": 1.0})
    adapted.set_mode("same")
    torch.testing.assert_close(adapted.model(X), outputs["other"])
    with pytest.raises(ValueError, match="sum"):
        adapted.combine("x", {"other": 0.5})
    with pytest.raises(ValueError, match="got the mode"):
        adapted.combine("x", {"nobody": 1.0})
    adapted.set_mode(rows)
    with pytest.raises(ValueError, match="batch of 3"):
        adapted.model(X[:3])


def test_a_router_learns_which_mode():
    router = ModeRouter(6, ["a", "b"])
    rows = (X[:, 0] > 0).long()
    assert router.fit(X, rows) < 0.3
    assert (router(X) == rows).float().mean() > 0.95
    assert router(X[:, None].expand(-1, 4, -1)).tolist() == router(X).tolist()
    with pytest.raises(ValueError, match="rows"):
        router.fit(X, rows + 1)
    with pytest.raises(ValueError, match="features"):
        router(X[:, :3])


# --- sharpness, calibration, sparsity ---


def test_annealing_is_geometric_and_hard_warns_in_training():
    adapted = add_taugate(mlp(), TauGateConfig(sharpness=4.0, anneal_to=16.0)).train()
    assert [adapted.anneal(p) for p in (0, 0.5, 1)] == pytest.approx([4, 8, 16])
    assert {gate.sharpness for gate in adapted.gates.values()} == {16}
    adapted.harden()
    with pytest.warns(UserWarning, match="no gradient"):
        adapted(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted.eval()(X)
        adapted.harden(False)
        adapted.train()(X)


def test_calibrated_thresholds_are_low_quantiles_of_the_base():
    base = mlp()
    z = base[0](X)
    adapted = add_taugate(base, TauGateConfig(init="calibrated"), sample=X)
    below = (z < adapted.gates["1"].tau[0] + 1 / 4 + 1e-6).float().mean(0)
    assert (below <= 1 / 40 + 1e-6).all()
    assert (below > 0).all()


def test_the_sparsity_term_is_the_mean_gate_and_closes_gates():
    adapted = add_taugate(mlp(), TauGateConfig(sparsity=0.5))
    with pytest.raises(RuntimeError, match="run the model"):
        adapted.sparsity_loss()
    adapted(X)
    z1 = adapted.model[0](X)
    gates = [torch.sigmoid(4 * (z1 + 1)).mean()]
    z2 = adapted.model[3](adapted.model[1](z1))
    gates.append(torch.sigmoid(4 * (z2 + 1)).mean())
    loss = adapted.sparsity_loss()
    torch.testing.assert_close(loss, 0.5 * torch.stack(gates).mean())
    loss.backward()
    assert (adapted.gates["4"].tau.grad < 0).all(), "a step raises every threshold"
    copy.deepcopy(adapted)
    assert add_taugate(mlp()).sparsity_loss().item() == 0


# --- files ---


def test_saved_and_loaded_with_modes(tmp_path):
    adapted = shuffled(add_taugate(mlp(), TauGateConfig(tau_init=-2.0, anneal_to=20.0)))
    adapted.add_mode("night")
    shuffled(adapted, 3)
    adapted.set_mode("night")
    adapted.anneal(0.5)
    adapted.harden()
    adapted.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taugate_config.json", "taugate_model.safetensors"]
    other = add_taugate(mlp())
    other.load(tmp_path)
    again = load_taugate(mlp(), tmp_path)
    for loaded in (other, again):
        assert loaded.modes == ["default", "night"]
        assert loaded.active == "night"
        assert torch.equal(loaded(X), adapted(X))
    assert again.config == adapted.config
    assert (tmp_path / "taugate_model.safetensors").stat().st_size < 2000


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    add_taugate(mlp()).save(tmp_path)
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    with pytest.raises(ValueError, match="'1'"):
        add_taugate(other).load(tmp_path)
    with pytest.raises(ValueError, match="matches no"):
        load_taugate(nn.Sequential(nn.Linear(6, 9), nn.ReLU()), tmp_path)
    with pytest.raises(ValueError, match="taugate_config"):
        load_taugate(mlp(), tmp_path / "nowhere")
    (tmp_path / "taugate_model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="safetensors"):
        load_taugate(mlp(), tmp_path)
    (tmp_path / "taugate_config.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="format"):
        load_taugate(mlp(), tmp_path)


def test_beside_a_pretrained_model_in_one_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="from_pretrained is of that library")
    base = language_model("gpt2")
    base.save_pretrained(tmp_path)
    adapted = shuffled(add_taugate(base))
    adapted.save(tmp_path)
    again = load_taugate(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path)
    assert torch.equal(again.model(**IDS).logits, adapted.model(**IDS).logits)


def test_copied_and_pickled():
    adapted = shuffled(add_taugate(mlp()))
    for again in (copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))):
        assert torch.equal(again(X), adapted(X))
        again.model.train()
        assert again.model[1].training
        assert not again.model[2].training
        assert not adapted.model[1].training, "a copy's train() is not the original's"


# --- folding ---


@pytest.mark.parametrize("name", ["mlp", "gpt2", "llama"])
def test_folded_gains_give_the_same_output(name):
    base = mlp() if name == "mlp" else language_model(name)
    inputs = X if name == "mlp" else IDS
    run = (lambda m: m(X)) if name == "mlp" else (lambda m: m(**IDS).logits)
    want_base = run(base)
    adapted = shuffled(add_taugate(base))
    adapted.add_mode("other")
    shuffled(adapted, 7)
    want = {}
    for mode in ("other", "default"):
        adapted.set_mode(mode)
        want[mode] = run(base)
    adapted.fold_gains(sample=inputs if name == "llama" else None)
    assert all((gate.gain[0] == 1).all() for gate in adapted.gates.values())
    for mode in ("default", "other"):
        adapted.set_mode(mode)
        torch.testing.assert_close(run(base), want[mode], rtol=1e-4, atol=1e-5)
    for forbidden in (lambda: adapted.set_mode(None), lambda: adapted.save("x"), lambda: adapted.add_mode("y")):
        with pytest.raises(RuntimeError, match="folded"):
            forbidden()
    assert torch.equal(run(adapted.remove()), want_base)


def test_gains_without_a_following_layer_are_not_folded():
    base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))
    adapted = shuffled(add_taugate(base))
    before = adapted(X)
    with pytest.raises(ValueError, match="'1'"):
        adapted.fold_gains()
    with pytest.raises(ValueError, match="'1'"):
        adapted.fold_gains(sample=X)
    assert torch.equal(adapted(X), before)


# --- report ---


def test_the_report_is_made_of_means_by_class():
    base = mlp()
    adapted = shuffled(add_taugate(base))
    labels = (X[:, 0] > 0).long()
    with torch.no_grad():
        adapted.gates["1"].tau[0, 2] = 100.0
    report = adapted.report([(X[:25], labels[:25]), (X[25:], labels[25:])])
    site = report.sites["1"]
    z = base[0](X).double()
    tau, gain = (t.detach()[0].double() for t in (adapted.gates["1"].tau, adapted.gates["1"].gain))
    g = torch.sigmoid(4 * (z - tau))
    assert site.labels.tolist() == [0, 1]
    assert site.counts.sum() == 40
    for label in (0, 1):
        where = labels == label
        torch.testing.assert_close(site.gate[label], g[where].mean(0))
        torch.testing.assert_close(site.output[label], (gain * torch.relu(z) * g)[where].mean(0))
        torch.testing.assert_close(site.base_output[label], torch.relu(z)[where].mean(0))
    torch.testing.assert_close(site.open, (z > tau).double().mean(0))
    assert 2 in site.closed.tolist()
    h = (gain * torch.relu(z) * g).mean(0)
    assert site.strong_share == pytest.approx((h > h.max() / 2).double().mean().item())
    assert site.top.shape == (8, 5)
    assert site.top[0, 0] == (gain * torch.relu(z) * g)[:, 0].argmax()
    assert "closed" in str(report)
    assert adapted.active == "default"
    assert 2 in report.signature()["1"][0]


def test_a_report_without_labels_and_on_tokens():
    adapted = shuffled(add_taugate(language_model("gpt2")))
    report = adapted.report([IDS, IDS])
    site = report.sites["transformer.h.0.mlp.act"]
    assert (site.labels.numel(), site.gate.shape, site.counts.tolist()) == (0, (1, 64), [4])
    with pytest.raises(ValueError, match="loader"):
        adapted.report([])
    adapted.set_mode(None)
    with pytest.raises(ValueError, match="mode"):
        adapted.report([IDS])


# --- compact ---


@pytest.mark.parametrize("name", ["mlp", "gpt2", "llama"])
def test_compact_is_the_hard_mode_with_fewer_units(name):
    base = mlp() if name == "mlp" else language_model(name)
    inputs, run = (X, lambda m: m(X)) if name == "mlp" else (IDS, lambda m: m(**IDS).logits)
    adapted = shuffled(add_taugate(base))
    with torch.no_grad():
        for gate in adapted.gates.values():
            gate.tau[0, ::2] = 1e3
    before = run(adapted.model)
    small = adapted.compact([inputs, inputs])
    assert torch.equal(run(adapted.model), before), "the adapted model is left as it is"
    adapted.harden()
    torch.testing.assert_close(run(small), run(adapted.model), rtol=1e-4, atol=1e-5)
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    adapted.remove()
    assert count(small) < count(base)
    layer = {"mlp": "0", "gpt2": "transformer.h.0.mlp.c_fc", "llama": "model.layers.0.mlp.up_proj"}[name]
    old, new = (m.get_submodule(layer).weight.numel() for m in (base, small))
    assert new <= old / 2
    small.train()
    assert small.training


def test_a_relu_with_thresholds_below_zero_is_itself_again():
    adapted = add_taugate(mlp())
    small = adapted.compact([X])
    assert isinstance(small[1], nn.ReLU)
    torch.testing.assert_close(small(X), adapted.remove()(X))


def test_a_site_whose_layers_are_shared_keeps_its_units():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.act, self.down = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)

        def forward(self, x):
            z = self.up(x)
            return z + self.down(self.act(z))

    torch.manual_seed(0)
    adapted = shuffled(add_taugate(Residual()))
    with torch.no_grad():
        adapted.gates["act"].tau[0, :3] = 1e3
    small = adapted.compact([X])
    assert small.up.weight.shape == (6, 6)
    assert isinstance(small.act, GatedActivation)
    adapted.harden()
    torch.testing.assert_close(small(X), adapted(X))


# --- as others use it ---


def test_gradient_checkpointing_gives_the_same_gradients():
    found = []
    for checkpointed in (False, True):
        base = language_model("gpt2", resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)
        if checkpointed:
            base.gradient_checkpointing_enable()
        adapted = shuffled(add_taugate(base))
        base.train()
        assert base.transformer.h[0].training == checkpointed
        loss = base(**IDS, labels=IDS["input_ids"], use_cache=False).loss
        found.append(torch.autograd.grad(loss, adapted.trainable_parameters()))
    torch.testing.assert_close(found[0], found[1])
    assert all(g.abs().sum() > 0 for g in found[1])


def test_a_compiled_model_follows_modes_and_sharpness():
    torch._dynamo.reset()
    adapted = shuffled(add_taugate(mlp(), TauGateConfig(anneal_to=20.0)))
    adapted.add_mode("other")
    compiled = torch.compile(adapted.model, fullgraph=True, backend="aot_eager")
    for progress in (0.0, 0.3, 0.6, 1.0):
        adapted.anneal(progress)
        torch.testing.assert_close(compiled(X), adapted.model(X))
    for mode in ("other", None, torch.arange(40) % 3 - 1):
        adapted.set_mode(mode)
        torch.testing.assert_close(compiled(X), adapted.model(X))
    adapted.set_mode("other")
    adapted.train()
    found = [torch.autograd.grad(m(X).sum(), adapted.trainable_parameters()) for m in (compiled, adapted.model)]
    torch.testing.assert_close(*found)


def test_half_precision_base():
    adapted = add_taugate(language_model("llama").bfloat16())
    assert {p.dtype for p in adapted.trainable_parameters()} == {torch.float32}
    adapted.model(**IDS).logits.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in adapted.trainable_parameters())


def test_convolutions_are_gated_by_channel():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    x = torch.randn(2, 1, 8, 8)
    adapted = shuffled(add_taugate(base))
    assert (adapted.sites[0].dim, adapted.sites[0].width) == (1, 4)
    want = adapted(x)
    adapted.fold_gains()
    torch.testing.assert_close(adapted(x), want, rtol=1e-4, atol=1e-5)
