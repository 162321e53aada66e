"""docs/samplers.md says what the code says.   `python -m tests.test_docs_samplers` writes its generated parts anew."""

import re
import textwrap
from pathlib import Path

import torch

import suffuse as sf
from suffuse import grids, oracle, samplers, schedules

from .laws.worlds import RULES

PAGE = Path(__file__).parent.parent / "docs" / "samplers.md"


def table() -> str:
    """Every exported rule; orders are those that the laws measure, over the options that they run with."""
    lines = [
        "| rule | what it is | order, cold | calls a step | noise | law | from |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rule in samplers.rules().items():
        forms = [r for r in RULES.values() if r.name == name]
        orders = sorted({(f"{r.order:g}", f"{r.cold_order:g}") for r in forms})
        calls = sorted({str(r.stages) for r in forms})
        noise = {True: "yes", False: "no"}
        draws = " or ".join(noise[kind] for kind in sorted({r.stochastic for r in forms}))
        what = " ".join((rule.fn.__doc__ or "").strip().split("\n\n")[0].split())
        cells = (f"`{rule!r}`", what, "; ".join(map(", ".join, orders)), ", ".join(calls), draws, rule.law, rule.paper)
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def printed(rule) -> str:
    """What `print(plan)` shows of four steps."""
    schedule = schedules.Linear()
    return f"```\n{rule.plan(schedule, grids.uniform(schedule, 4))}\n```"


PARTS = {
    "table": table,
    "ddim": lambda: printed(samplers.ddim),
    "dpmpp": lambda: printed(samplers.dpmpp(order=2)),
}


def _filled(page: str) -> str:
    for name, make in PARTS.items():
        marks = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        assert page.count(marks[0]) == page.count(marks[1]) == 1, f"the page has one part {name!r}"
        pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
        body = make().join(marks)
        page = re.sub(pattern, lambda _, body=body: body, page, flags=re.DOTALL)
    return page


def test_the_page_holds_what_the_code_prints():
    page = PAGE.read_text()
    assert page == _filled(page), "stale: run python -m tests.test_docs_samplers"


def test_the_examples_of_the_page_run():
    model = oracle.Mixture([0.4, 0.6], torch.tensor([[-1.0], [1.0]], dtype=torch.float64), [0.1, 0.2])
    image = model.sample(5, seed=0).double()
    names = {"sf": sf, "model": model, "noise": sf.noise((5, 1), seed=0, dtype=torch.float64), "image": image}
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for _, block in blocks:
        exec(textwrap.dedent(block), names)
    torch.testing.assert_close(names["back"], image, rtol=0, atol=1e-9)
    assert names["plan"].nfe == 20


if __name__ == "__main__":
    PAGE.write_text(_filled(PAGE.read_text()))
