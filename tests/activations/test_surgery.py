"""The name under which the activation papers offer surgery."""

import torch
from torch import nn

from paperworks.activations.surgery import ReplacementReport, replace_activations


def test_it_is_the_surgery_of_paperworks_surgery() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    report = replace_activations(model, nn.PReLU)
    assert isinstance(report, ReplacementReport)
    assert report.model is model
    assert report.replaced == ["1"]
    x = torch.tensor([[-1.0, 2.0]])
    torch.testing.assert_close(model(x), torch.nn.functional.prelu(model[0](x), torch.tensor([0.25])))
