"""XAMBA: state-space models on neural processing units, by rewriting their graphs (arXiv 2502.06924).

Three steps. *Enable*: `export_mamba` makes an OpenVINO graph of static shape from a transformers Mamba or Mamba-2.
*Optimise*, exactly: `cumba` turns cumulative sums, `reduba` sums, into products with constant matrices of ones, for a
processor whose matrix unit is fast and whose vector unit is slow. *Trade accuracy*: `actiba` makes Swish and SoftPlus
piecewise linear. `segsum_difference` goes beyond the paper. `ssd_scan` and `PiecewiseLinear` need PyTorch alone.
"""

from paperworks.efficiency.xamba.activation import actiba
from paperworks.efficiency.xamba.cumulative_sum import CumsumCost, cumba, cumsum_cost
from paperworks.efficiency.xamba.export import export_mamba
from paperworks.efficiency.xamba.inspection import Latency, benchmark, largest_intermediate, op_histogram
from paperworks.efficiency.xamba.passes import PassReport, PassRow, pass_report, xamba
from paperworks.efficiency.xamba.piecewise import PiecewiseLinear, PiecewiseLinearActivation
from paperworks.efficiency.xamba.reduce_sum import reduba
from paperworks.efficiency.xamba.segment_sum import segsum_difference
from paperworks.efficiency.xamba.ssd import segment_sum, ssd_scan

__all__ = [
    "CumsumCost",
    "Latency",
    "PassReport",
    "PassRow",
    "PiecewiseLinear",
    "PiecewiseLinearActivation",
    "actiba",
    "benchmark",
    "cumba",
    "cumsum_cost",
    "export_mamba",
    "largest_intermediate",
    "op_histogram",
    "pass_report",
    "reduba",
    "segment_sum",
    "segsum_difference",
    "ssd_scan",
    "xamba",
]
