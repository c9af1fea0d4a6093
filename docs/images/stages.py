"""Draws stages.svg, the picture of P-DARTS' three stages in the README, from the settings that a search has by default.

python docs/images/stages.py
"""

from pathlib import Path

from pdarts_tune import PRIMITIVES, RECIPES, SearchConfig

# One edge as an example: the candidates of each stage, and the operation of the final cell.
CANDIDATES = (
    PRIMITIVES,
    ("max_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3"),
    ("skip_connect", "sep_conv_3x3", "dil_conv_3x3"),
    ("sep_conv_3x3",),
)
LEFT, COLUMN, WIDTH, HEIGHT = 138, 190, 900, 336
INK, GREY, PALE, NORMAL, REDUCTION = "#333333", "#6E6E6E", "#B0B0B0", "#0072B2", "#E69F00"


def draw() -> str:
    search, evaluation = SearchConfig(), RECIPES["cifar"]
    depths = [stage.cells for stage in search.stages] + [evaluation.cells]
    assert [len(operations) for operations in CANDIDATES] == [*(stage.operations for stage in search.stages), 1]
    heads = [*(f"Stage {number}" for number in range(1, len(search.stages) + 1)), "Evaluation"]
    limits = [
        *(f"dropout from {stage.skip_dropout:.1f}" for stage in search.stages),
        f"at most {search.max_skips} in the normal cell",
    ]
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="white"/>',  # readable on a dark page too
        write(16, 73, "Depth grows", weight="bold"),
        write(16, 97, "orange: reduction", colour=GREY, size=12),
        write(16, 130, "Operations", weight="bold"),
        write(16, 148, "are dropped", weight="bold"),
        write(16, 170, "one edge,", colour=GREY, size=12),
        write(16, 185, "an example", colour=GREY, size=12),
        write(16, 300, "Skip-connects", weight="bold"),
        write(16, 318, "are held back", weight="bold"),
    ]
    for place, (head, depth, operations, limit) in enumerate(zip(heads, depths, CANDIDATES, limits, strict=True)):
        x = LEFT + place * COLUMN
        parts.append(write(x, 30, head, weight="bold", size=17))
        if place:
            parts.append(f'<path d="M{x - 40} 25 h20 m-6 -5 l6 5 l-6 5" fill="none" stroke="{GREY}" stroke-width="2"/>')
        for cell in range(depth):
            colour = REDUCTION if cell in (depth // 3, 2 * depth // 3) else NORMAL
            parts.append(f'<rect x="{x + 8.5 * cell}" y="57" width="7" height="20" rx="1.5" fill="{colour}"/>')
        parts.append(write(x, 97, f"{depth} cells", colour=GREY))
        for row, operation in enumerate(PRIMITIVES):
            style = {"colour": INK} if operation in operations else {"colour": PALE, "line": "line-through"}
            parts.append(write(x, 130 + 18 * row, operation, **style))
        parts.append(write(x, 309, limit))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join([f'{head} font-family="Helvetica, Arial, sans-serif">', *parts, "</svg>\n"])


def write(x: float, y: float, words: str, size: int = 14, weight: str = "normal", colour: str = INK, line: str = "none") -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{colour}" text-decoration="{line}"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw())
