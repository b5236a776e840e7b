"""Functional MRI: the layouts on disk, normalisation, clips that share no frame, and what the simulator plants."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.data.fmri import (
    FMRIClips,
    find_runs,
    from_grid,
    preprocess_nifti,
    read_space,
    read_targets,
    simulate_fmri,
    to_grid,
)
from paperworks.data.fmri_simulation import _courses, haemodynamic_response
from paperworks.data.volumes import write_nifti

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def run(seed: int = 0, shape: tuple[int, ...] = (8, 8, 8, 12)) -> np.ndarray:
    """Values around 1000 in a box, 0 outside."""
    data = np.zeros(shape, np.float32)
    inside = data[1:-1, 1:-1, 1:-1]
    inside[:] = np.random.default_rng(seed).normal(1000, 50, inside.shape)
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nibabel", reason="writes and reads NIfTI")
    folder = tmp_path_factory.mktemp("fmri")
    for i, name in enumerate(("100307", "sub-NDAR1", "1000123_20227_2_0")):
        write_nifti(folder / f"{name}.nii.gz", run(i), AFFINE, seconds=0.72)
    return folder


@pytest.fixture(scope="module")
def frames(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for path in root.glob("*.nii.gz"):
        preprocess_nifti(path, folder / "img")
    (folder / "img" / "100307" / "voxel_mean.pt").write_bytes(b"is no frame")
    return folder


TARGETS = {"100307": 1.0, "NDAR1": 0.0, "1000123": 1.0}


def test_preprocessing(root: Path, tmp_path: Path) -> None:
    found = preprocess_nifti(root / "100307.nii.gz", tmp_path)
    assert found == tmp_path / "100307"
    volumes = [torch.load(found / f"frame_{i}.pt", weights_only=True) for i in range(12)]
    assert {(v.dtype, tuple(v.shape)) for v in volumes} == {(torch.float16, (8, 8, 8, 1))}
    whole, raw = torch.cat(volumes, 3).float(), torch.from_numpy(run(0))
    brain = whole[raw != 0]
    assert brain.mean().abs() < 1e-3
    assert brain.std() == pytest.approx(1, abs=1e-3)
    assert (whole[raw == 0] == brain.min()).all()
    wanted = (raw - raw[raw != 0].mean()) / raw[raw != 0].std()
    torch.testing.assert_close(brain, wanted[raw != 0], rtol=2e-3, atol=2e-3)
    scaled = preprocess_nifti(root / "100307.nii.gz", tmp_path / "b", "minmax")
    values = torch.cat([torch.load(scaled / f"frame_{i}.pt", weights_only=True) for i in range(12)], 3)
    assert (values.min(), values.max()) == (0, 1)


def test_preprocessing_again_leaves_no_frame_of_a_longer_run(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    for frames in (5, 3):
        write_nifti(tmp_path / "a.nii", run(0, (6, 6, 6, frames)), AFFINE)
        folder = preprocess_nifti(tmp_path / "a.nii", tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["frame_0.pt", "frame_1.pt", "frame_2.pt", "space.json"]


def test_crop_and_the_way_back(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    data = run(0, (9, 12, 7, 3))
    write_nifti(tmp_path / "a.nii.gz", data, AFFINE, seconds=1.5)
    folder = preprocess_nifti(tmp_path / "a.nii.gz", tmp_path, crop=((0, 9), (3, -2), (1, 7)))
    space = read_space(folder)
    assert (space.shape, space.crop, space.seconds) == ((9, 12, 7), ((0, 9), (3, 10), (1, 7)), 1.5)
    assert np.array_equal(space.affine, AFFINE)
    frame = torch.load(folder / "frame_2.pt", weights_only=True).float()
    assert frame.shape == (9, 7, 6, 1)
    back = from_grid(to_grid(frame, (10, 10, 10), float(frame[0, 0, 0, 0])), space)[..., 0]
    torch.testing.assert_close(back[:, 3:10, 1:7], frame[..., 0])
    assert back.abs().sum() == frame.abs().sum(), "zero elsewhere"
    for crop in (((0, 9), (3, 3), (1, 7)), ((0, 9),)):
        with pytest.raises(ValueError, match="crop: got"):
            preprocess_nifti(tmp_path / "a.nii.gz", tmp_path, crop=crop)


@given(sizes=st.tuples(*[st.integers(1, 9)] * 3), grid=st.tuples(*[st.integers(1, 9)] * 3))
@settings(max_examples=30, deadline=None)
def test_a_grid_and_back(sizes: tuple, grid: tuple) -> None:
    clip = torch.full((*sizes, 2), -3.0)
    padded = to_grid(clip, grid, -3.0)
    assert padded.shape == (*grid, 2)
    from paperworks.data.fmri import Space

    space = Space(sizes, tuple((0, s) for s in sizes), AFFINE)
    back = from_grid(padded, space)
    assert back.shape == clip.shape
    assert set(back.unique().tolist()) <= {0.0, -3.0}
    assert (back != 0).sum() == 2 * np.prod(np.minimum(sizes, grid)), "what was not cut off comes back"


def test_padding_is_the_published_one() -> None:
    """HCP: 75 x 93 x 81 voxels get 11, 2 and 8 before, 10, 1 and 7 behind; the UK Biobank loses 7 and 6 of axis 1."""
    one = torch.ones(75, 93, 81, 1)
    inside = torch.nonzero(to_grid(one, (96, 96, 96), 0.0)[..., 0])
    assert inside.min(0).values.tolist() == [11, 2, 8]
    assert (95 - inside.max(0).values).tolist() == [10, 1, 7]
    air = torch.zeros(91, 109, 91, 1)
    air[:, 7:-6] = 1
    assert torch.equal(to_grid(air, (91, 96, 91), 0.0), air[:, 7:-6])
    air[0, 6, 0] = 1
    with pytest.raises(ValueError, match="109 voxels on axis 1, which would cut the brain"):
        to_grid(air, (91, 96, 91), 0.0)


def test_clips_of_frames_and_of_nifti_are_the_same(root: Path, frames: Path) -> None:
    options = {"length": 5, "stride": 3, "pad_to": (10, 9, 8)}
    one, other = FMRIClips(root, TARGETS, **options), FMRIClips(frames, TARGETS, **options)
    assert len(one) == len(other) == 3 * 3
    assert one.subjects == other.subjects == [s for s in TARGETS for _ in range(3)]
    for i in (0, 4, 8):
        a, b = one[i], other[i]
        assert a["image"].dtype == b["image"].dtype == torch.float32
        assert a["image"].shape == (1, 10, 9, 8, 5)
        torch.testing.assert_close(a["image"], b["image"], rtol=2e-3, atol=2e-3)
        assert (a["subject"], a["start"], a["target"]) == (b["subject"], b["start"], b["target"])
        assert a["target"] == TARGETS[a["subject"]]
        assert a["start"] == 3 * (i % 3)
        assert (a["image"][:, 0] == a["image"][0, 5, 0, 0, 0]).all(), "padded with the background"
    raw = FMRIClips(root, {"100307": 0.0}, 12, pad_to=None, scaling=None)[0]["image"]
    assert torch.equal(raw[0], torch.from_numpy(run(0)))


def test_only_whole_clips(root: Path) -> None:
    assert [len(FMRIClips(root, TARGETS, n, n)) for n in (4, 5, 12, 13)] == [9, 6, 3, 0]


@pytest.mark.parametrize("length", [3, 4, 6])
def test_second_clips_share_no_frame(frames: Path, length: int) -> None:
    clips = FMRIClips(frames, TARGETS, length, 1, contrastive=True, pad_to=None)
    starts = set()
    for epoch in range(6):
        clips.set_epoch(epoch)
        for i in range(0, len(clips), 3):
            item = clips[i]
            assert abs(item["start"] - item["other_start"]) >= length
            assert item["other"].shape == item["image"].shape
            starts.add((i, item["other_start"]))
    assert length == 6 or len(starts) > len(clips) // 3, "drawn anew each epoch"
    assert torch.equal(clips[0]["other"], clips[0]["other"])


def test_clips_without_room_for_another_are_left_out(frames: Path) -> None:
    assert [start for subject, start in FMRIClips(frames, {"100307": 0.0}, 6, 1, True, None).clips] == [0, 6]


def test_loads_in_batches(frames: Path) -> None:
    from torch.utils.data import DataLoader

    batch = next(iter(DataLoader(FMRIClips(frames, TARGETS, 4, 4, True, (8, 8, 8)), batch_size=5)))
    assert batch["image"].shape == batch["other"].shape == (5, 1, 8, 8, 8, 4)
    assert batch["target"].tolist() == [1, 1, 1, 0, 0] or len(batch["subject"]) == 5


def test_bad_data_is_named(root: Path, frames: Path, tmp_path: Path) -> None:
    cases = {
        "no run below .* of nobody": lambda: FMRIClips(root, {"nobody": 1.0}),
        "length: got 0": lambda: FMRIClips(root, TARGETS, 0),
        "stride: got 0": lambda: FMRIClips(root, TARGETS, 4, 0),
        "pad_to: got": lambda: FMRIClips(root, TARGETS, pad_to=(8, 8)),
        "scaling: got 'z'": lambda: FMRIClips(root, TARGETS, scaling="z"),
        "would cut the brain": lambda: FMRIClips(root, TARGETS, 4, pad_to=(8, 4, 8))[0],
        "scaling: got None": lambda: preprocess_nifti(root / "100307.nii.gz", tmp_path, None),
        "root: got": lambda: FMRIClips(tmp_path / "none", TARGETS),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
    write_nifti(tmp_path / "three.nii", np.ones((2, 2, 2)))
    write_nifti(tmp_path / "flat.nii", np.ones((2, 2, 2, 3), np.float32))
    for name, message in (("three", "with 3 axes, wanted 4"), ("flat", "all the same; wanted a brain")):
        with pytest.raises(ValueError, match=message):
            preprocess_nifti(tmp_path / f"{name}.nii", tmp_path)
    with pytest.raises(ValueError, match="with 3 axes"):
        FMRIClips(tmp_path, {"three": 0.0})
    folder = preprocess_nifti(root / "100307.nii.gz", tmp_path / "gap")
    (folder / "frame_3.pt").unlink()
    with pytest.raises(ValueError, match=r"no frame_3\.pt"):
        FMRIClips(tmp_path / "gap", {"100307": 0.0})


def test_frames_are_never_unpickled(frames: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    torch.save(Path("anything"), tmp_path / "a" / "frame_0.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        FMRIClips(tmp_path, {"a": 0.0}, 1, pad_to=None)[0]


def test_targets(tmp_path: Path) -> None:
    path = tmp_path / "HCP_1200_gender.csv"
    path.write_text("Subject,Gender,Age\n100206,M,27\n100307,F,\n100408,M,33.5\n100408,M,33.5\n")
    assert read_targets(path, "Gender") == {"100206": 1, "100307": 0, "100408": 1}
    assert read_targets(path, "Age") == {"100206": 27, "100408": 33.5}
    for column, text, message in (
        ("IQ", "Subject,Age\n1,2\n", "the column 'IQ'"),
        ("Age", "Subject,Age\n1,old\n", "got 'old' of the subject 1"),
        ("Age", "Subject,Age\n1,2\n1,3\n", "got '3' of the subject 1"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_targets(path, column)


def test_runs_are_found_under_the_names_of_the_data_sets(root: Path, frames: Path) -> None:
    for folder in (root, frames):
        assert list(find_runs(folder, ["1000123", "NDAR1", "x", "100307"])) == ["1000123", "NDAR1", "100307"]


# --- the simulator ---


def simulated(effect: str = "antiphase", n: int = 60, **options: object):
    return simulate_fmri(n, (16, 16, 16, 24), torch.Generator().manual_seed(0), effect=effect, **options)


def test_simulated_runs_look_like_preprocessed_ones() -> None:
    found = simulated(n=5)
    assert found.images.shape == (5, 1, 16, 16, 16, 24)
    assert found.images.dtype == torch.float32
    assert found.labels.bincount().tolist() in ([3, 2], [2, 3])
    brain = found.images[:, 0, found.mask].flatten(1)
    torch.testing.assert_close(brain.mean(1), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(brain.std(1), torch.ones(5), atol=1e-4, rtol=0)
    outside = found.images[:, 0, ~found.mask].flatten(1)
    assert torch.equal(outside, brain.min(1, keepdim=True).values.expand_as(outside))
    assert not found.mask[0, 0, 0], "voxel 0 is background"
    assert (found.parcels > 0).equal(found.mask)
    assert int(found.region.sum()) == 2 * 4**3
    assert torch.equal(found.images, simulated(n=5).images)
    other = simulate_fmri(5, (16, 16, 16, 24), torch.Generator().manual_seed(1))
    assert not torch.equal(found.images, other.images)


def parcel_means(found) -> torch.Tensor:
    numbers = range(1, int(found.parcels.max()) + 1)
    return torch.stack([found.images[:, 0, found.parcels == i].mean(1) for i in numbers], 1)


def test_antiphase_is_in_the_halves_and_not_in_the_means_of_parcels() -> None:
    """Runs with the same draws and another strength have the same parcel means, up to the run's own scale."""
    weak, strong = (simulated(strength=s, n=8) for s in (0.0, 2.0))
    for a, b in zip(parcel_means(weak), parcel_means(strong), strict=True):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.9999
    assert not torch.allclose(weak.images[:, 0, weak.region], strong.images[:, 0, weak.region], atol=0.5)


def test_antiphase_tells_the_groups_apart_by_the_axis_of_the_halves() -> None:
    found = simulated(strength=1.5)
    first = found.parcels[found.region].unique()[0]
    at = torch.nonzero(found.parcels == first)
    (h, w, d), (h1, w1, d1) = at.min(0).values.tolist(), (at.max(0).values + 1).tolist()
    cube = found.images[:, 0, h:h1, w:w1, d:d1]
    along = [
        (cube.narrow(axis, 0, 2).mean((1, 2, 3)) - cube.narrow(axis, 2, 2).mean((1, 2, 3))).pow(2).mean(1)
        for axis in (1, 2)
    ]
    more = along[0] > along[1]
    agree = (more == (found.labels == 1)).float().mean()
    assert agree in (0.0, 1.0) or min(agree, 1 - agree) < 0.1


def test_correlation_tells_the_groups_apart_by_the_regions_means() -> None:
    found = simulated("correlation", strength=1.5)
    planted = found.parcels[found.region].unique() - 1
    assert len(planted) == 2 * (int(found.parcels.max()) // 5)
    means = parcel_means(found)[:, planted]
    r = torch.stack([torch.corrcoef(run).mean() for run in means])
    assert r[found.labels == 1].mean() > r[found.labels == 0].mean() + 0.2


def test_courses_have_the_haemodynamic_shape_and_deviation_one() -> None:
    response = haemodynamic_response(0.72)
    assert response.sum() == pytest.approx(1)
    assert 4.3 < 0.72 * int(response.argmax()) < 5.8
    assert response.min() < 0, "it undershoots"
    courses = _courses(4000, 10, 0.72, torch.Generator().manual_seed(0))
    assert courses.std() == pytest.approx(1, abs=0.03)
    lag = (courses[:, 1:] * courses[:, :-1]).mean()
    assert lag > 0.8, "smooth in time"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effect": "shift"}, "effect: got 'shift'"),
        ({"n": 0}, "shape: got"),
        ({"shape": (16, 16, 16)}, "shape: got"),
        ({"parcel": 3}, "parcel: got 3"),
        ({"shape": (6, 6, 6, 4)}, "wanted at least two cubes of 4 voxels"),
    ],
)
def test_bad_simulations(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_fmri(**{"n": 2, "shape": (16, 16, 16, 8), **options})
