"""Made-up papers in any number, for measuring a catalogue at sizes that no download is needed for.

Words follow Zipf's law over a vocabulary of the field's terms, everyday words of abstracts and a long tail of invented
names; a paper draws part of its words from one of many topics, so that papers resemble one another in groups. Nothing
of it is anybody's text. The same seed gives the same papers, however many are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["synthetic_papers", "synthetic_queries"]


def _words(text: str) -> list[str]:
    return text.split()


_GLUE = _words(
    "the of and a to in we is for that with on by this are as our from an be which it can at or their than has these "
    "not have more both show using results propose new approach method paper while without between across over under "
    "only such most each into via when where however further also first two several many high low large small"
)
_TERMS = _words(
    "activation adapter adversarial agent alignment annotation anomaly architecture attention attractor autoencoder "
    "backbone bandit baseline batch bayesian benchmark bias bottleneck brain calibration camera causal channel "
    "classifier clustering code cognitive compression concept conformal contrastive control convolution corpus cortex "
    "curriculum dataset decoder decoding delay denoising depth detection dialogue diffusion dimension distillation "
    "distribution domain dropout dynamics edge electroencephalography embedding encoder energy ensemble entropy "
    "equivariance estimation evaluation exploration expression face feature federated filter flow forecasting fourier "
    "frequency fusion gate gaussian generation generative gesture gradient graph grasp grounding hallucination "
    "hardware hessian hierarchical homeostasis humanoid hypergraph image imitation inference inhibition initialization "
    "instruction interpretability intervention kernel keypoint knowledge kolmogorov label language latency latent "
    "layer learning likelihood linear localization locomotion loss manifold manipulation markov mask memory metric "
    "mixture mobile modality model momentum motion motor multimodal network neuron normalization object optimization "
    "oracle oscillation parameter parsing patch perception planning plasticity policy pose posterior prediction "
    "preference pretraining prior probing projection prompt pruning quantization query ranking reasoning recognition "
    "reconstruction recurrent regression regularization reinforcement representation reservoir residual resolution "
    "retrieval reward robot robustness rollout routing sampling scene segmentation seizure selection semantic sensor "
    "sequence simulation skeleton softmax sparsity spectral speech spiking stability steering stochastic summarization "
    "supervision surrogate symmetry synapse synthesis teacher temporal tensor texture threshold token topology "
    "tracking trajectory transfer transformer translation tumor uncertainty video vision voxel wavelet window"
)
_STEMS = _words(
    "neuro spike graph meta hyper vision lingo robo motio cardio retino cortex wave flux pixel voxel token mini omni "
    "auto multi poly proto infra trans inter geno astro aero hydro thermo chrono audio video semi quasi iso para"
)
_ENDS = _words(
    "net former flow mix gate prune steer bench gen seg track align cast scope lab mark tune adapt fuse field grid map "
    "path core loop sense mind link cell node ware kit base chain rank hash"
)
_FORENAMES = _words(
    "Ada Aiko Amara Anouk Bela Bodil Carlos Chen Chiara Dara Dmitri Elif Emeka Esra Farid Freya Gita Hana Hugo Ines "
    "Ivo Jana Jomo Kaito Kemal Lakshmi Leila Lars Mei Mira Nadia Niko Olga Omar Paula Priya Quentin Rana Rosa Samir "
    "Sofia Tariq Teresa Uma Viktor Wanjiru Xu Yara Yusuf Zofia"
)
_SURNAMES = _words(
    "Abe Adeyemi Almeida Andersen Banerjee Bauer Castillo Chowdhury Costa Dang Dubois Eriksen Farah Fischer Fontaine "
    "Garcia Ghosh Haddad Hansen Hoang Ibrahim Ito Jansen Kaya Keller Kimura Kovacs Larsen Lindqvist Lopez Mbeki "
    "Mehta Moreau Nakamura Nguyen Novak Okafor Olsen Park Petrov Quispe Rahman Rossi Sato Schmidt Silva Tanaka Torres "
    "Ueda Vargas Visser Weber Yamada Yilmaz Zhou Zielinski"
)

_TOPICS = 120
_TOPIC_WORDS, _TOPIC_TERMS = 240, 60
_TAIL = 20_000
_CHUNK = 1000
_MONTHS = 120
_LARGEST = _MONTHS * 99_999


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Words from the commonest to the rarest, the running total of their shares, and the words of each topic."""
    rng = np.random.default_rng(20260424)
    made = [f"{stem}{end}" for stem in _STEMS for end in _ENDS]
    tail = [f"{made[i % len(made)]}{i // len(made) + 2}" if i >= len(made) else made[i] for i in range(_TAIL)]
    terms = [str(word) for word in rng.permutation(_TERMS)]
    words = [*_GLUE, *terms, *(str(word) for word in rng.permutation(tail))]
    share = 1 / (np.arange(len(words)) + 2.7)  # Zipf's law as Mandelbrot has it
    content = np.arange(len(_GLUE), len(words))
    common = len(_TERMS)
    topics = np.stack(
        [
            np.concatenate(
                [
                    rng.choice(content[:common], _TOPIC_TERMS, replace=False),
                    rng.choice(content[common:], _TOPIC_WORDS - _TOPIC_TERMS, replace=False),
                ]
            )
            for _ in range(_TOPICS)
        ]
    )
    return words, np.cumsum(share / share.sum()), topics


def synthetic_papers(n: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The facts of `n` papers, each the keyword arguments of a `paperworks.feed.PaperRecord`.

    The ids have the form of arXiv's, in months of the 2080s, where no paper is. Abstracts have 80 to 220 words.

    Raises ValueError for `n` below 0 or above what the ids have room for.
    """
    if not 0 <= n <= _LARGEST:
        raise ValueError(f"n: got {n}, wanted a number from 0 to {_LARGEST}")
    for chunk in range(-(-n // _CHUNK)):
        rng = np.random.default_rng([seed, chunk])
        first = chunk * _CHUNK
        made = _chunk(rng, first)
        yield from made[: n - first]


def _chunk(rng: np.random.Generator, first: int) -> list[dict[str, Any]]:
    """`_CHUNK` papers from number `first`; every chunk draws the same amount, so that a prefix is a prefix."""
    words, cumulated, topics = _vocabulary()
    lengths = rng.integers(80, 221, _CHUNK)
    topic = rng.integers(0, _TOPICS, _CHUNK)
    own = rng.random((_CHUNK, 240)) < 0.3
    general = np.minimum(np.searchsorted(cumulated, rng.random((_CHUNK, 240))), len(words) - 1)
    # Within a topic too the first words are the commonest.
    within = topics[topic[:, None], np.minimum(rng.zipf(1.3, (_CHUNK, 240)) - 1, _TOPIC_WORDS - 1)]
    drawn = np.where(own, within, general)
    # A topic begins with its terms and goes on with its names: of either kind every other word of a title.
    places = rng.integers(0, [_TOPIC_TERMS, _TOPIC_WORDS] * 4, (_CHUNK, 8))
    titles = topics[topic[:, None], places]
    title_lengths = rng.integers(4, 9, _CHUNK)
    people = rng.integers(0, [len(_FORENAMES), len(_SURNAMES)], (_CHUNK, 8, 2))
    n_people = rng.integers(1, 9, _CHUNK)
    days = rng.integers(0, 3650, _CHUNK)
    votes = np.minimum(rng.zipf(1.6, _CHUNK) - 1, 5000)
    return [
        {
            "title": " ".join(words[i] for i in titles[row, : title_lengths[row]]).capitalize(),
            "id": _id(first + row),
            "abstract": _sentences([words[i] for i in drawn[row, : lengths[row]]]),
            "authors": [f"{_FORENAMES[a]} {_SURNAMES[b]}" for a, b in people[row, : n_people[row]]],
            "published": date(2016, 1, 1) + timedelta(days=int(days[row])),
            "upvotes": int(votes[row]),
            "keywords": list(dict.fromkeys(words[i] for i in topics[topic[row], :4])),
            "source": "synthetic",
        }
        for row in range(_CHUNK)
    ]


def _id(number: int) -> str:
    month, place = number % _MONTHS, number // _MONTHS + 1
    return f"{80 + month // 12:02d}{month % 12 + 1:02d}.{place:05d}"


def _sentences(words: list[str]) -> str:
    return " ".join(" ".join(words[i : i + 18]).capitalize() + "." for i in range(0, len(words), 18))


def synthetic_queries(papers: Sequence[Mapping[str, Any]], n: int, seed: int = 0) -> list[str]:
    """What readers of `papers` might type: words of a title, or of an abstract; every fourth has a slip in a word.

    Raises ValueError for no papers.
    """
    if not papers:
        raise ValueError("papers: got none, wanted one or more")
    rng = np.random.default_rng([seed, len(papers)])
    queries = []
    for number in range(n):
        paper = papers[int(rng.integers(len(papers)))]
        words = str(paper["title"]).lower().split()
        if number % 2:
            words = sorted({word.strip(".").lower() for word in str(paper["abstract"]).split()} - set(_GLUE)) or words
        chosen = [str(word) for word in rng.choice(words, min(len(words), int(rng.integers(1, 5))), replace=False)]
        if number % 4 == 3:
            chosen[-1] = _with_a_slip(chosen[-1], rng)
        queries.append(" ".join(chosen))
    return queries


def _with_a_slip(word: str, rng: np.random.Generator) -> str:
    """The word with two neighbouring letters in the other order."""
    if len(word) < 4:
        return word
    at = int(rng.integers(1, len(word) - 2))
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
