"""The style sheet of the report pages: one column, readable on a phone, light and dark."""

STYLE = """
:root { color-scheme: light dark; --page:#f7f7f5; --card:#ffffff; --ink:#1c1d20; --quiet:#62656d; --rule:#e3e3df;
  --binary:#0b6bcb; --float:#c2570c; --good:#1a7f4b; --bad:#c0362c; }
@media (prefers-color-scheme: dark) { :root { --page:#131417; --card:#1c1e22; --ink:#ececee; --quiet:#a0a4ad;
  --rule:#32353b; --binary:#62aefc; --float:#f29a52; --good:#5ecb93; --bad:#ff8a7f; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--page); color:var(--ink); font:16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust:100%; }
main { max-width:960px; margin:0 auto; padding:2.2rem 1.1rem 3.5rem; }
header p { max-width:44rem; margin:.5rem 0 0; font-size:1.06rem; }
h1 { font-size:clamp(1.55rem, 5.2vw, 2.15rem); line-height:1.18; letter-spacing:-.018em; margin:0; text-wrap:balance; }
h2 { font-size:1.13rem; margin:0 0 .15rem; letter-spacing:-.005em; }
h3 { font-size:.95rem; font-weight:600; margin:0 0 .3rem; }
section { background:var(--card); border:1px solid var(--rule); border-radius:12px; padding:1.15rem 1.2rem 1.3rem;
  margin-top:1.1rem; }
.quiet { color:var(--quiet); font-size:.9rem; margin:.1rem 0 .8rem; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(150px, 1fr)); gap:.8rem; margin-top:1.5rem; }
.tile { background:var(--card); border:1px solid var(--rule); border-radius:12px; padding:.85rem 1rem .9rem; }
.tile b { display:block; font-size:1.5rem; line-height:1.2; letter-spacing:-.02em; }
.tile span { color:var(--quiet); font-size:.86rem; line-height:1.35; display:block; margin-top:.2rem; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th { text-align:right; font-weight:600; font-size:.84rem; color:var(--quiet); padding:.35rem .6rem;
  white-space:nowrap; }
td { text-align:right; padding:.5rem .5rem; border-top:1px solid var(--rule); white-space:nowrap; }
th:first-child, td:first-child { text-align:left; padding-left:0; white-space:normal; }
tr.ours td { font-weight:600; }
td small { display:block; font-weight:400; color:var(--quiet); font-size:.82rem; }
.two { display:grid; grid-template-columns:repeat(auto-fit, minmax(290px, 1fr)); gap:1.2rem 1.6rem; }
svg { width:100%; height:auto; display:block; }
.grid { stroke:var(--rule); stroke-width:1; }
.tick { fill:var(--quiet); font-size:12px; }
.name { font-size:13px; font-weight:600; stroke:none; }
.curve { fill:none; stroke-width:2.2; stroke-linejoin:round; stroke-linecap:round; }
.curve.binary { stroke:var(--binary); } .curve.float { stroke:var(--float); }
.name.binary { fill:var(--binary); } .name.float { fill:var(--float); }
.point { fill:transparent; } .point:hover { fill-opacity:.55; }
.point.binary:hover { fill:var(--binary); } .point.float:hover { fill:var(--float); }
.bars { display:grid; grid-template-columns:minmax(6.5rem, auto) 1fr; gap:.5rem .9rem; align-items:center; }
.bar-name { font-size:.92rem; }
.bar-track { display:flex; align-items:center; gap:.55rem; min-width:0; padding-right:5.2rem; }
.bar { height:20px; border-radius:3px; flex:none; }
.bar.binary { background:var(--binary); } .bar.float { background:var(--float); }
.bar-text { font-size:.9rem; font-variant-numeric:tabular-nums; white-space:nowrap; }
.pictures { display:grid; grid-template-columns:repeat(auto-fill, minmax(74px, 1fr)); gap:.75rem .6rem; }
.pictures figure { margin:0; text-align:center; }
.pictures img { width:100%; aspect-ratio:1; image-rendering:pixelated; border-radius:6px; display:block;
  background:#000; }
.pictures figcaption { font-size:.84rem; line-height:1.3; margin-top:.3rem; font-variant-numeric:tabular-nums; }
.pictures figcaption b { font-size:1rem; }
.pictures .bad b { color:var(--bad); } .pictures .good b { color:var(--good); }
.pictures .bad img { outline:2px solid var(--bad); outline-offset:2px; }
pre { background:var(--page); border:1px solid var(--rule); border-radius:8px; padding:.8rem .95rem; overflow-x:auto;
  font:.87rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin:.6rem 0 0; }
footer { color:var(--quiet); font-size:.86rem; margin-top:1.4rem; }
"""
