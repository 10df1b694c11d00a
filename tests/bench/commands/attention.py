"""`attention`: `dit-accel bench attention` with other people's attention beside ours."""

from __future__ import annotations

import argparse

from dit_accel.accel.bench.sweep import Peers
from dit_accel.accel.cli import bench_attention


def run(options: argparse.Namespace) -> int:
    """As bench_attention.run, whose rows the peers' stand beside unless options.no_baselines."""
    return bench_attention.run(options, None if options.no_baselines else _peers)


def _peers() -> Peers:
    from dit_accel.tests.bench.baselines import PEERS

    return PEERS
