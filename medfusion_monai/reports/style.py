"""How the HTML report looks: on a screen, on a phone, on paper."""

from __future__ import annotations

CSS = """
:root { color-scheme: light; --ink: #1f2328; --soft: #57606a; --rule: #c9ced4; --tint: #f4f6f8; --paper: #ffffff;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 2rem 3rem; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.55 Charter, "Bitstream Charter", "Iowan Old Style", Cambria, Georgia, "Noto Serif", serif;
  overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.2; font-weight: 600; text-wrap: balance; }
h1 { font-size: 2rem; margin: 0 0 1.25rem; max-width: 30em; }
h2 { font-size: 1.4rem; margin: 2.75rem 0 .9rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font: 600 1rem/1.4 var(--sans); margin: 1.5rem 0 .4rem; }
p, ul { margin: 0 0 1rem; max-width: 44rem; }
a { color: inherit; }
nav { font: .9rem/1.6 var(--sans); margin: 1.5rem 0 0; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.25rem; padding: 0; margin: 0; max-width: none; }
nav a { color: var(--soft); text-underline-offset: .2em; }
.warning { border: 1px solid #b45309; border-left-width: .4rem; background: #fff8eb; padding: .8rem 1rem;
  margin: 0 0 1.25rem; max-width: 44rem; }
.warning > :first-child { margin-top: 0; padding-top: 0; border: 0; }
.warning > :last-child { margin-bottom: 0; }
.warning h2 { font: 700 1rem/1.4 var(--sans); margin-bottom: .3rem; }
.warning ul { padding-left: 1.2rem; }

.table { margin: 1.25rem 0 1.75rem; font-family: var(--sans); font-size: .875rem; line-height: 1.4; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch;
  background: linear-gradient(to left, var(--paper) 1.5rem, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, rgb(0 0 0 / .12), transparent) right / .7rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums lining-nums; }
caption { text-align: left; padding: 0 0 .5rem; font-weight: 600; }
caption > span, .group span { position: sticky; left: 0; display: inline-block;
  max-width: min(44rem, calc(100vw - 3rem)); white-space: normal; }
th, td { padding: .45rem .7rem; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid #e6e9ec; }
thead th { vertical-align: bottom; font-weight: 600; max-width: 9.5rem; border-top: 2px solid var(--ink);
  border-bottom: 1px solid var(--ink); }
thead small { display: block; font-weight: 400; color: var(--soft); }
tbody:last-child tr:last-child > * { border-bottom: 2px solid var(--ink); }
tbody th, td.text { min-width: 7.5rem; max-width: 17rem; overflow-wrap: anywhere; }
tbody th.number { min-width: 0; }
th:first-child, td:first-child { padding-left: .25rem; }
tbody th:first-child, thead th:first-child { position: sticky; left: 0; background: var(--paper); z-index: 1; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
.code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .8125rem;
  overflow-wrap: anywhere; }
.group th { position: static !important; background: var(--tint) !important; font-weight: 600; max-width: none; }
.group span { left: .25rem; overflow-wrap: anywhere; }
.interval { display: block; font-size: .78em; color: var(--soft); }
strong { font-weight: 700; }
sup { line-height: 0; font-size: .75em; }
sup a { text-decoration: none; color: var(--soft); padding: 0 .1em; }
.notes { list-style: none; padding: 0; margin: .5rem 0 0; font-size: .8125rem; color: var(--soft); }
.notes li { padding-left: 1.6em; text-indent: -1.6em; }
.notes sup { display: inline-block; width: 2.1em; text-indent: 0; }

figure { margin: 1.5rem 0 2rem; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid #e6e9ec; }
figure svg { display: block; width: 100%; max-width: 34rem; height: auto; }
figcaption { font: .875rem/1.45 var(--sans); margin-top: .6rem; max-width: 44rem; color: var(--soft); }
figcaption b { color: var(--ink); }
pre { background: var(--tint); padding: .8rem 1rem; margin: 0 0 1.25rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
pre code { line-height: 1.5; }
footer { margin-top: 3rem; padding-top: .9rem; border-top: 1px solid var(--rule); font: .8125rem/1.5 var(--sans);
  color: var(--soft); }

@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 2rem; font-size: 1rem; }
  h1 { font-size: 1.5rem; }
  h2 { font-size: 1.2rem; }
  th, td { padding: .4rem .5rem; }
  tbody th { min-width: 6rem; max-width: 9.5rem; }
  td.text { min-width: 10rem; max-width: 13rem; }
  tbody th.number { min-width: 0; }
  caption > span, .group span { max-width: calc(100vw - 2.5rem); }
}

@page { size: A4; margin: 14mm 13mm; }
@media print {
  :root { --ink: #000; --soft: #333; }
  body { max-width: none; padding: 0; font-size: 10pt; line-height: 1.4; }
  h1 { font-size: 17pt; }
  h2 { font-size: 13pt; margin-top: 7mm; }
  h2, h3, caption, p:has(+ figure), p:has(+ .table) { break-after: avoid; }
  nav { display: none; }
  a { text-decoration: none; }
  .warning { background: none; border-color: #000; break-inside: avoid; }
  .table { font-size: 7.5pt; line-height: 1.3; margin: 4mm 0 5mm; }
  .scroll { overflow: visible; background: none; }
  table { width: auto; max-width: 100%; }
  caption > span, .group span, tbody th:first-child, thead th:first-child { position: static; max-width: none; }
  th, td { padding: 1mm 1.2mm; }
  tbody th, td.text { min-width: 20mm; max-width: 60mm; }
  tbody th.number { min-width: 0; }
  thead th { max-width: 30mm; overflow-wrap: break-word; }
  .interval { font-size: .85em; }
  .number, .interval { white-space: normal; }
  .code { font-size: 7pt; }
  thead { display: table-header-group; }
  p, .table, tr, figure, .notes li, pre { break-inside: avoid; }
  .group { break-after: avoid; }
  .group th { background: none !important; }
  .notes { font-size: 7.5pt; }
  figure img { max-height: 200mm; width: auto; }
  figure svg { max-width: 120mm; }
  figcaption { font-size: 8.5pt; }
  pre { background: none; border: 1px solid #999; }
}
"""
