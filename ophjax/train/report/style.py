"""The style sheet of the report: one column on a phone, several on a wide screen; light or dark."""

from __future__ import annotations

# Okabe and Ito's palette, safe for all common kinds of colour blindness, for light and for dark pages.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#6b6b6b")
DARK = ("#56b4e9", "#ff9a4d", "#2fcf9f", "#e59cc6", "#f0e442", "#9fd4f5", "#b0b0b0")


def _variables(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{number}:{colour};" for number, colour in enumerate(colours))


STYLE = (
    f"""
:root{{--ink:#1c1f23;--soft:#5b636d;--page:#fff;--card:#f3f4f6;--line:#d9dde2;{_variables(LIGHT)}}}
@media(prefers-color-scheme:dark){{
:root{{--ink:#e8eaed;--soft:#a2abb6;--page:#15181c;--card:#1f242a;--line:#363d46;{_variables(DARK)}}}}}"""
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif;
  -webkit-text-size-adjust:100%}
main{max-width:1020px;margin:0 auto;padding:16px 16px 48px}
h1{font-size:1.7rem;line-height:1.3;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.2rem 0 .7rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1rem 0 .4rem}
header p{margin:.2rem 0}
.note,.small,.name{color:var(--soft);font-size:.84rem;font-weight:400}
.small{display:block}
.small,.name{overflow-wrap:anywhere}
.note{margin:.5rem 0;max-width:46rem}
.chip{font-size:.8rem;font-weight:600;padding:.15rem .65rem;border-radius:1rem;border:1.5px solid;
  vertical-align:.25rem;display:inline-block}
.good{color:var(--c2)} .busy{color:var(--c0)} .idle{color:var(--c6)} .bad{color:var(--c1)}
table{border-collapse:collapse}
th{text-align:left;font-weight:600}
.scores{width:100%;max-width:640px}
.scores tr,.plain tr{border-bottom:1px solid var(--line)}
.scores th,.scores td{padding:.5rem 0;vertical-align:top}
.scores .value{text-align:right;white-space:nowrap;padding-left:1rem;font-variant-numeric:tabular-nums}
.value b{font-size:1.1rem}
.bar{width:120px;display:block;margin:.15rem 0 0 auto}
.rail,.span{fill:none;stroke:var(--line);stroke-width:2;stroke-linecap:round}
.span{stroke:var(--c0);stroke-width:3.4}
.bar circle{fill:var(--ink)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:20px 28px;
  align-items:start}
.grid>div{min-width:0}
.chart{display:block;width:100%;max-width:480px;height:auto}
.scroll{overflow-x:auto}
.confusion{font-variant-numeric:tabular-nums}
.confusion td,.confusion th{padding:.55rem .8rem;text-align:center}
.confusion tbody th{text-align:right}
.confusion thead td{color:var(--soft);font-size:.84rem}
.confusion tbody td{border:2px solid var(--page);min-width:5rem;font-size:1.1rem;
  background:color-mix(in srgb,var(--c0) calc(var(--share)*100%),var(--card))}
.many td,.many th{padding:.4rem;font-size:.85rem}
.confusion.many tbody td{min-width:3.2rem;font-size:.95rem}
.confusion .deep,.confusion .deep .small{color:var(--page)}
figure{margin:0}
figure svg{display:block;width:100%;border-radius:6px;background:var(--card)}
figcaption{font-size:.84rem;line-height:1.4;margin-top:.3rem;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(45%,175px),1fr));gap:16px 12px}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(100px,1fr));gap:8px;margin:.3rem 0 1.4rem}
.maps figcaption{color:var(--soft);font-size:.78rem;line-height:1.25}
.caption{font-size:.9rem;margin:0}
.right{color:var(--c2)} .wrong{color:var(--c1)}
.truth,.found,.halo{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.halo{stroke:#000;stroke-opacity:.45;stroke-width:3}
.truth{stroke:#fff;stroke-width:1.5}
.found{stroke:#00a2ff;stroke-width:2;stroke-dasharray:5 4}
.key{display:inline-block;width:2.4em;vertical-align:middle;background:#444;padding:4px 3px;border-radius:3px}
.key::after{content:"";display:block;border-top:2px solid #fff}
.dashed::after{border-top:2px dashed #00a2ff}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;margin:0;
  white-space:pre-wrap;overflow-wrap:anywhere;font:.85rem/1.5 ui-monospace,monospace}
details{margin:.7rem 0}
summary{cursor:pointer;font-weight:600;padding:.3rem 0}
.plain{width:100%;font-size:.88rem}
.plain th,.plain td{padding:.3rem .6rem .3rem 0;vertical-align:top;overflow-wrap:anywhere}
.plain th{font-weight:400;color:var(--soft)}
@media print{.grid>div,.cards figure{break-inside:avoid}}
"""
)
