"""AF-KAN: Kolmogorov-Arnold layers from pairs of shifted activations, with the parameters of a linear layer.

"AF-KAN: Activation Function-Based Kolmogorov-Arnold Networks for Efficient Representation Learning" (arXiv 2503.06112).
The equations stand in `functional`; `AFKANLayer(in_features, out_features)` takes the place of `nn.Linear`, and
`replace_linear(model, AFKANLayer)` puts it into a whole model.
"""

from paperworks.kan.af_kan.counts import flop_count, parameter_count
from paperworks.kan.af_kan.layer import AFKAN, AFKANLayer
from paperworks.kan.af_kan.relu_kan import ReLUKANLayer
from paperworks.kan.replace import replace_linear

__all__ = ["AFKAN", "AFKANLayer", "ReLUKANLayer", "flop_count", "parameter_count", "replace_linear"]
