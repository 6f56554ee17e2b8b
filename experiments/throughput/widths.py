"""The paper's table 1 over widths and lengths: regular training, first order, second order, path,
and direct per-sample gradients. `make throughput`.

    python -m experiments.throughput.widths                  small models on a CPU
    python -m experiments.throughput.widths scale=paper      GPT-2 124M at length 1024

The measuring is that of `experiments.throughput.study`; here the plans follow the paper's section
5.1.
"""

from experiments.frame import command
from experiments.throughput.study import main

if __name__ == "__main__":
    command("throughput", main)
