"""The picture of a run of scripts/bench: bars that a person can compare at a glance."""

from html import escape
from math import exp, log
from statistics import median

WIDTH, MARGIN, LABELS, FIGURES = 880, 24, 236, 150
BARS = WIDTH - 2 * MARGIN - LABELS - FIGURES
ROW, BAR = 22, 15

# (light, dark) of each class: ours in blue, bfloat16 stronger than float32.
COLOURS = {
    "page": ("#ffffff", "#0d1117"),
    "text": ("#1f2328", "#e6edf3"),
    "faint": ("#59636e", "#9198a1"),
    "rule": ("#d1d9e0", "#3d444d"),
    "spread": ("#1f2328", "#e6edf3"),
    "limit": ("#cf222e", "#ff7b72"),
    "ours-bfloat16": ("#0b62ce", "#4493f8"),
    "ours-float32": ("#8abcf5", "#1f5aa8"),
    "theirs-bfloat16": ("#6e7781", "#9198a1"),
    "theirs-float32": ("#bcc4cc", "#545d68"),
}
SHORT = {"bfloat16": "bf16", "float32": "fp32"}


def style():
    def rules(shade):
        for name, colours in COLOURS.items():
            stroke = f"; stroke: {colours[shade]}" if name in ("rule", "spread", "limit") else ""
            yield f".{name} {{ fill: {colours[shade]}{stroke} }}"

    return (
        "text { font: 13px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; stroke: none }\n"
        ".big { font-size: 18px; font-weight: 600 } .heading { font-size: 14px; font-weight: 600 }\n"
        ".small { font-size: 11px } .strong { font-weight: 600 } .end { text-anchor: end }\n"
        + "\n".join(rules(0))
        + "\n@media (prefers-color-scheme: dark) {\n"
        + "\n".join(rules(1))
        + "\n}"
    )


def number(value):
    """Three digits that count, or all before the point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


class Drawing:
    def __init__(self):
        self.parts = []
        self.y = MARGIN

    def text(self, x, y, words, classes="text"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(words)}</text>')

    def box(self, x, y, width, height, classes):
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height}" rx="2" class="{classes}"/>'
        )

    def line(self, x1, y1, x2, y2, classes, dashed=False):
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{classes}"{dash}/>'
        )

    def panel(self, title, rows, limit=None):
        """`rows`: (label, class, samples, what is said beside the median)."""
        left = MARGIN + LABELS
        self.y += 26
        self.text(MARGIN, self.y, title, "text heading")
        self.y += 10
        scale = BARS / max([max(samples) for _, _, samples, _ in rows] + ([limit] if limit else []))
        top = self.y
        for label, kind, samples, beside in rows:
            middle = self.y + ROW / 2
            ours = kind.startswith("ours")
            self.text(left - 8, middle + 4.5, label, "text end" + " strong" * ours)
            figure = median(samples)
            self.box(left, middle - BAR / 2, figure * scale, BAR, kind)
            if len(samples) > 1:
                ends = min(samples) * scale, max(samples) * scale
                self.line(left + ends[0], middle, left + ends[1], middle, "spread")
            self.text(WIDTH - MARGIN - 76, middle + 4.5, number(figure), "text end" + " strong" * ours)
            self.text(WIDTH - MARGIN, middle + 4.5, beside, "faint end")
            self.y += ROW
        self.line(left, top, left, self.y, "rule")
        if limit:
            self.line(left + limit * scale, top - 2, left + limit * scale, self.y, "limit", dashed=True)

    def finished(self, title, description):
        height = self.y + MARGIN
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
                f'height="{height:.0f}" role="img" aria-labelledby="title description">',
                f'<title id="title">{escape(title)}</title>',
                f'<desc id="description">{escape(description)}</desc>',
                f"<style>\n{style()}\n</style>",
                f'<rect width="{WIDTH}" height="{height:.0f}" class="page"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def label(engine):
    name = engine["who"].split(" (")[0]
    for long, short in SHORT.items():
        name = name.replace(long, short)
    return name


def kind(engine):
    return f"{'ours' if engine['ours'] else 'theirs'}-{engine['dtype']}"


def engine_panels(drawing, report):
    classes = report["classes"]

    def overall(name):
        rates = [median(e["texts_per_second"]) for c in classes for e in c["engines"] if e["who"] == name]
        return exp(sum(map(log, rates)) / len(rates))

    for one in classes:
        reference = next(
            (e["texts_per_second"] for e in one["engines"] if e["who"] == "sentence-transformers float32"), None
        )
        rows = []
        # In the same order in each panel, so that a name has its place.
        for engine in sorted(one["engines"], key=lambda engine: -overall(engine["who"])):
            rates = engine["texts_per_second"]
            ratio = f"{median(a / b for a, b in zip(rates, reference)):.1f}×" if reference else ""
            rows.append((label(engine), kind(engine), rates, ratio))
        # What the CPU lacks is null.
        products = [rates[0] for rates in one["roofline"]["operations_per_second"] if rates[0]]
        limit = median(products) / one["operations_per_text"] if products else None
        mean = number(one["tokens"] / one["texts"])
        drawing.panel(f"{one['class']} texts, {mean} tokens in the mean: texts/s", rows, limit)


def http_panels(drawing, report):
    for shape in report["shapes"]:
        most = max(row["clients"] or 0 for row in shape["rows"])
        rows = []
        for row in shape["rows"]:
            if row["clients"] != most:
                continue
            name = row["who"].split(",")[0]
            dtype = "float32" if name.endswith("float32") else "bfloat16"
            rates = [rate * shape["texts_per_request"] for rate in row["requests_per_second"]]
            short = name.replace("server", "this server").replace("bfloat16", "bf16").replace("float32", "fp32")
            group = "ours" if row["ours"] else "theirs"
            rows.append((short, f"{group}-{dtype}", rates, f"{number(row['p50_ms'])} ms"))
        drawing.panel(f"over HTTP, {shape['shape']}, {most} connections: texts/s, median time", rows)


def svg(report, cpu):
    """The picture of what scripts/bench measured."""
    drawing = Drawing()
    drawing.y += 14
    drawing.text(MARGIN, drawing.y, "Texts embedded a second, and how many times sentence-transformers fp32", "text big")
    drawing.y += 20
    drawing.text(MARGIN, drawing.y, f"{cpu} · {report['date']}, commit {report['commit']}", "faint")
    drawing.y += 22
    x = MARGIN
    for words, colour in [
        ("ours, bf16", "ours-bfloat16"),
        ("ours, fp32", "ours-float32"),
        ("others, bf16", "theirs-bfloat16"),
        ("others, fp32", "theirs-float32"),
    ]:
        drawing.box(x, drawing.y - 10, 12, 12, colour)
        drawing.text(x + 17, drawing.y, words, "faint")
        x += 110
    drawing.line(x + 6, drawing.y - 11, x + 6, drawing.y + 3, "limit", dashed=True)
    drawing.text(x + 17, drawing.y, "LibTorch's bf16 matrix products, nothing else", "faint")
    if "engine" in report:
        engine_panels(drawing, report["engine"])
    if "http" in report:
        http_panels(drawing, report["http"])
    description = "Horizontal bars, grouped by the length of the texts; the tables beside this picture have the figures."
    return drawing.finished(f"Texts embedded a second on {cpu}", description)
