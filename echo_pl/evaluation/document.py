"""The shell of a self-contained HTML document: one style for every page, light and dark, no script, no network.

Knows nothing of reports or trajectories but the names of their classes.
"""

from __future__ import annotations

import html

CSS = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5d6670; --line: #dfe3e8; --paper: #fdfdfc; --panel: #f5f6f7;
  --bad: #b3261e; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa4ae; --line: #343a41; --paper: #16191c;
  --panel: #1e2226; --bad: #ff9a8f; --good: #7fd19b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 82rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; font-weight: 600; letter-spacing: -0.01em; margin: 0 0 0.4rem; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 3rem 0 0.8rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 0.95rem; font-weight: 600; margin: 1.4rem 0 0.3rem; }
p { max-width: 46rem; margin: 0.4rem 0; overflow-wrap: anywhere; }
pre { background: var(--panel); padding: 0.8rem 1rem; overflow-x: auto;
  border-radius: 4px; font-size: 0.85rem; } .soft { color: var(--soft); font-size: 0.85rem; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
th, td { padding: 0.35rem 0.5rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; line-height: 1.25; color: var(--soft); border-bottom: 1.5px solid var(--soft);
  vertical-align: bottom; }
th.left, td.left { text-align: left; } th:first-child, td:first-child { padding-left: 0; }
.plot { background: #fff; border: 1px solid var(--line); border-radius: 4px; padding: 0.5rem; }
.study { display: grid; grid-template-columns: 15rem minmax(0, 1fr); gap: 0 2rem; align-items: start; }
.study aside img { width: 100%; border-radius: 3px; border: 1px solid var(--line); background: #000; }
.study aside { position: sticky; top: 1rem; }
.study .report:first-child h3 { margin-top: 0; }
@media (max-width: 46rem) { .study { grid-template-columns: 1fr; }
  .study aside { position: static; max-width: 15rem; } }
.report p { max-width: 52rem; margin: 0.15rem 0; }
.report .invalid { text-decoration: underline wavy var(--bad) 1.5px; text-underline-offset: 3px; }
.report .head { color: var(--soft); font-size: 0.78rem; text-transform: uppercase; letter-spacing: 0.04em;
  margin-right: 0.5em; }
.report .bad { color: var(--bad); }
details { margin: 0.4rem 0 0.8rem; } summary { cursor: pointer; color: var(--soft); font-size: 0.85rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.note { border-left: 3px solid var(--bad); padding-left: 0.7rem; }
.tiles { display: flex; flex-wrap: wrap; gap: 0.7rem; margin: 1.4rem 0 0; }
.tile { background: var(--panel); border-radius: 6px; padding: 0.7rem 0.9rem; min-width: 7rem;
  display: flex; flex-direction: column; font-size: 0.82rem; font-variant-numeric: tabular-nums; }
.tile .head { color: var(--soft); } .tile strong { font-size: 1.5rem; font-weight: 600; line-height: 1.4; }
th.group { padding-top: 1.1rem; color: var(--ink); border-bottom: 1px solid var(--soft); }
.whisker { display: block; stroke: currentColor; fill: currentColor; stroke-width: 1.5; } .whisker .zero { stroke: var(--line); }
.bars { fill: var(--soft); stroke: none; font-size: 11px; } .bars line { stroke: var(--line); } figure { margin: 1rem 0; }
.report .missing { text-decoration: underline dotted var(--soft) 1.5px; text-underline-offset: 3px; }
.report .extra { text-decoration: underline solid var(--bad) 1px; text-underline-offset: 3px; }
.case { margin-top: 1.4rem; } .case aside { position: static; } .case h3 { margin-top: 0; }
.trajectory { margin: 0.5rem 0 1rem; } .trajectory .tokens { line-height: 2.05; font-size: 0.9rem; }
.trajectory .block { border-left: 2px solid var(--soft); padding-left: 0.2rem; margin-right: 0.35rem; }
.trajectory .run { border-left: 0; padding-left: 0; }
.trajectory .number { color: var(--soft); font-size: 0.65rem; vertical-align: 0.5em; margin-right: 0.15rem; }
.trajectory .token { color: #15191d; white-space: pre-wrap; padding: 0.14rem 0.12rem; border-radius: 3px;
  margin-right: 1px;  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.trajectory .token.low { outline: 1.5px dashed #b3261e; outline-offset: -1px; }
.trajectory .token.control { font-size: 0.72rem; font-style: italic; } .trajectory .token.after { opacity: 0.45; }
.trajectory .legend { color: var(--soft); font-size: 0.78rem; margin: 0.2rem 0 0.4rem; }
.trajectory .legend .token { padding: 0.05rem 0.5rem; margin: 0 0.15rem 0 0.1rem; }
.trajectory .reference { font-size: 0.88rem; color: var(--soft); margin-top: 0.4rem; max-width: 60rem; }
"""


def html_document(title: str, body: str) -> str:
    """A whole document around ``body`` (HTML); ``title`` is plain text and is escaped."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
