"""Writes docs/savings.md: what plans save on GPT-3 175B, both GPUs, 12 to 96 microbatches, five time budgets.

Run by `make savings`. The A40 profile is read from the data that the project's machines have beside the checkout.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from perseus_api.profile import parse_profile
from perseus_planner import MaximumSlowdown, Pipeline, plan
from perseus_planner.planning import Planned

_ROOT = Path(__file__).resolve().parent.parent
_DATA = _ROOT.parent / "shared" / "data" / "perseus-sosp24"
_GPUS = {
    "A100-SXM": ("gpt3-175b_a100-sxm.csv", 83.64, (15.20, 14.19, 13.62, 13.32)),
    "A40": ("gpt3-175b_a40.csv", 70.38, (11.81, 10.22, 9.34, 8.88)),
}
_MICROBATCHES = (12, 24, 48, 96)
_BUDGETS = (0.0, 0.5, 1.0, 5.0, 10.0)
_TEXT = """# What plans save: GPT-3 175B, 8 stages, 1F1B

Percent of an iteration's energy saved against every instruction at its highest clock, by time allowed above that;
in brackets the exact relaxation's bound, which no plan can exceed. Every instruction runs at a measured clock and the
limit is kept at real times. The last column is what the paper's solver reports without slowdown (Chung et al., SOSP
'24, Table 6; it rounds times to milliseconds and fits energies). Written by `make savings` from the profiles that the
paper published; a plan took at most {slowest:.2f} s of one core.

| GPU | microbatches | {budgets} | paper, no slowdown |
|---|---|{rules}|---|
{rows}
"""


def main() -> int:
    """Write the table."""
    if not _DATA.is_dir():
        print(f"{_DATA.name} is not beside this checkout: the A40 profile is read from there", file=sys.stderr)
        return 2
    rows, slowest = [], 0.0
    for gpu, (name, watts, published) in _GPUS.items():
        profile = parse_profile((_DATA / name).read_text(), None, watts)
        plan(profile, Pipeline(8, 2), MaximumSlowdown(0))  # Compile first.
        for microbatches, paper in zip(_MICROBATCHES, published, strict=True):
            cells = []
            for budget in _BUDGETS:
                begin = time.process_time()
                found = plan(profile, Pipeline(8, microbatches), MaximumSlowdown(budget))
                slowest = max(slowest, time.process_time() - begin)
                cells.append(_cell(found))
            rows.append(f"| {gpu} | {microbatches} | {' | '.join(cells)} | {paper:.2f} |")
            print(rows[-1], flush=True)
    text = _TEXT.format(
        budgets=" | ".join(f"{budget:g} %" for budget in _BUDGETS),
        rules="|".join("---" for _ in _BUDGETS),
        rows="\n".join(rows),
        slowest=slowest,
    )
    (_ROOT / "docs" / "savings.md").write_text(text)
    return 0


def _cell(found: Planned) -> str:
    return f"{found.savings_percent:.2f} ({found.bound_savings_percent:.2f})"


if __name__ == "__main__":
    sys.exit(main())
