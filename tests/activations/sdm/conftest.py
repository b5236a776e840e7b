import warnings

import numpy as np
import pytest
import torch

from paperworks.activations.sdm import SDMClassifier


def blobs(n, classes=3, features=6, spread=1.0, seed=0):
    """Gaussian classes about random centres."""
    rng = np.random.default_rng(seed)
    centres = 2.5 * np.random.default_rng(99).normal(size=(classes, features))
    y = rng.permutation(np.arange(n) % classes)
    return centres[y] + spread * rng.normal(size=(n, features)), y


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sizes this small gain nothing from threads that wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fitted():
    """A classifier of three text labels, its data and fresh points."""
    x, y = blobs(420, seed=1)
    names = np.array(["cat", "dog", "eel"])
    classifier = SDMClassifier(alpha=0.8, rounds=3, epochs=10, lr=1e-2, num_filters=16, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.fit(x, names[y])
    fresh, fresh_y = blobs(300, spread=1.3, seed=2)
    return classifier, (x, names[y]), (fresh, names[fresh_y])
