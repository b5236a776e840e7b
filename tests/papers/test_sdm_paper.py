"""The card of SDM: its exact checks and that a broken method loses them, what it needs, a whole run, the benchmark."""

import importlib.util
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from in_process import Here
from papers.protocols.embedding_files import write_answers, write_embeddings

import paperworks.activations.sdm as method
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import resolve
from paperworks.lab.registry import find
from paperworks.lab.report import collect
from paperworks.lab.report.figures import draw_all
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial

paper = find("sdm")
EXACT = [claim for claim in paper.claims if claim.kind == "exact"]


def observed(id: str) -> dict[str, float]:
    found = resolve(paper.claim(id).target)(Trial())
    return dict(found) if isinstance(found, dict) else {"": found}


def unmet(id: str) -> list[str]:
    found = observed(id)
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "lab.sqlite") as opened:
        yield opened


# --- the card ---


def test_facts():
    assert paper.arxiv == "2502.20167"
    assert len(paper.authors.split(", ")) == paper.n_authors == 1


@pytest.mark.filterwarnings("ignore:no threshold reaches")
def test_the_usage_on_the_card_runs(capsys):
    generator = np.random.default_rng(0)
    labels = np.array(["calm", "storm"])[np.arange(80) % 2]
    embeddings = generator.standard_normal((80, 4)) + 6 * (labels == "storm")[:, None]
    exec(paper.usage, {"embeddings": embeddings, "labels": labels, "new_embeddings": embeddings[:3] + 0.01})
    assert capsys.readouterr().out


# --- exact claims ---


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_what_is_exact_holds(claim):
    assert unmet(claim.id) == []


def natural_loss(z, target, q, d=1.0):
    """The loss without its logarithm to the base 2 + q."""
    p = method.sdm(z, q, d)
    return -p[torch.arange(len(z)), target].log().mean()


class NoThreshold(method.CalibrationOutputs):
    """Everything is admitted."""

    def threshold(self, alpha):
        return 0.0, np.zeros(3)


class OneTooMany(method.SupportIndex):
    """Counts the first failure, too."""

    def query(self, h, predictions, *, exclude_self=False):
        q, nearest = super().query(h, predictions, exclude_self=exclude_self)
        return q + 1, nearest


class WholeHead(method.VerifiedHead):
    """A head whose negative half is trained, too."""

    def __init__(self, lm_head):
        super().__init__(lm_head)
        self.negative_ = torch.nn.Parameter(self.negative.clone())


BROKEN = {
    "the base": ("gradient-is-free-of-the-base", "sdm_loss", natural_loss),
    "softmax": ("generalises-softmax", "SOFTMAX_Q", 2.0),
    "similarity": ("similarity-by-counting", "SupportIndex", OneTooMany),
    "thresholds": ("quantile-cut-keeps-the-accuracy", "CalibrationOutputs", NoThreshold),
    "frozen half": ("trains-the-output-layer", "VerifiedHead", WholeHead),
    "regulariser": ("regulariser-follows-the-loss", "peak_regularizer", lambda *a: torch.tensor(2.0)),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_method_loses_its_exact_claim(broken, monkeypatch):
    id, name, instead = broken
    monkeypatch.setattr(method, name, instead)
    assert unmet(id)


def test_the_band_is_as_wide_as_massart_says_and_no_wider():
    # for large samples the law tends to 2 exp(-2 t^2) = 0.05
    assert 0.045 < observed("band-holds-the-distribution")[""] < 0.05


# --- needs ---


def missing(id: str, **settings: str) -> list[str]:
    return [need.name for need in paper.claim(id).needs if need.kind == "setting" and need.missing(settings)]


def test_what_is_needed_is_said_and_met_by_what_the_user_gives():
    embeddings = "admits-at-the-wanted-accuracy-on-embeddings"
    assert missing(embeddings) == ["data", "shifted"]
    assert missing(embeddings, data="digits", shifted="jsonl:x") == ["data"]
    assert missing(embeddings, data="jsonl:x", shifted="jsonl:y") == []
    assert missing("beats-stated-confidence", data="jsonl:x") == ["answers"]
    assert missing("beats-stated-confidence", data="jsonl:x", answers="True") == []
    given = {"language_model": "gpt2", "documents": "x", "test_documents": "y"}
    network = "network-raises-accuracy-and-share"
    assert missing(network, **given) == ["language_model"], "a model with random weights"
    assert missing(network, **{**given, "language_model": "microsoft/Phi-3.5-mini-instruct"}) == []


@pytest.mark.filterwarnings("ignore:no threshold reaches")
def test_what_needs_data_runs_on_a_file_of_it(tmp_path, store):
    data, elsewhere = (write_embeddings(tmp_path / f"{name}.jsonl", seed=seed) for seed, name in enumerate("ab"))
    settings = {"data": data, "shifted": elsewhere}
    [verdict] = run(
        [paper], store, Here(), tier="smoke", settings=settings, claims=["admits-at-the-wanted-accuracy-on-embeddings"]
    )
    assert verdict.status == "inconclusive", verdict.reason
    settings = {"data": write_answers(tmp_path / "answers.jsonl"), "answers": "1"}
    [verdict] = run([paper], store, Here(), tier="smoke", settings=settings, claims=["beats-stated-confidence"])
    assert verdict.status == "inconclusive", verdict.reason


# --- a whole run ---


@pytest.mark.filterwarnings("ignore:no threshold reaches")
def test_controls_run_and_too_few_seeds_decide_nothing(store):
    small = {"support": "400", "epochs": "1"}
    claims = [claim.id for claim in paper.claims if claim.protocol is not None]
    controls = run([paper], store, Here(), tier="smoke", settings=small, claims=claims, control=True)
    assert {verdict.status for verdict in controls} == {"inconclusive", "not run"}, [v.reason for v in controls]


@pytest.mark.filterwarnings("ignore:no threshold reaches")
def test_the_figure_shows_what_is_admitted(store):
    pytest.importorskip("mapie", reason="the figure has its arms")
    claims = ["errs-less-under-shift", "errs-less-than-prediction-sets-under-shift"]
    run([paper], store, Here(), tier="smoke", claims=claims)
    [drawn] = draw_all(collect(store, [paper]))["sdm"]
    assert not drawn.missing
    text = "".join(ElementTree.fromstring(drawn.svg.replace("xlink:href", "href")).itertext())
    for words in ("SDM", "softmax", "APS singletons", "turned by 45°", "share admitted"):
        assert words in text


@pytest.mark.filterwarnings("ignore:no threshold reaches")
def test_the_figure_does_without_mapie(store):
    run([paper], store, Here(), tier="smoke", claims=["errs-less-under-shift"])
    [drawn] = draw_all(collect(store, [paper]))["sdm"]
    assert not drawn.missing
    assert "temperature scaling" in drawn.svg
    assert "singletons" not in drawn.svg


# --- the benchmark ---


def test_the_searches_that_are_timed_find_the_same_similarities():
    module = importlib.import_module(find_cases.__module__)
    [folder] = [f for f in module.FOLDERS if (f / "sdm.py").exists()]
    spec = importlib.util.spec_from_file_location("sdm_benchmark", folder / "sdm.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    case = benchmark.query_case(600, 32, 40)
    found = {}
    for name, prepare in case.contenders.items():
        try:
            found[name] = prepare()()
        except ImportError:
            assert "faiss" in name
    assert len(found) >= 3
    for q in found.values():
        assert np.array_equal(q, found[case.method])
    assert found[case.method].max() > 3
