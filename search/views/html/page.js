"use strict";
(() => {
  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // A phone is too narrow for a long title in one line, and for a legend in one column beside a plot of any height.
  const isNarrow = () => innerWidth < 600;
  const folded = text => isNarrow() && text ? text.replace(/(.{24,36}?) /g, "$1<br>") : text;
  const axis = (given, isAcross) => {
    const title = typeof given?.title === "string" ? {text: given.title} : {...given?.title};
    if (isAcross) title.text = folded(title.text);
    return {...given, title, gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line"), automargin: true};
  };
  const themed = layout => {
    const full = {...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      font: {color: color("--ink"), size: 12}, margin: {l: 50, r: 16, t: 32, b: 84}, legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom"},
      modebar: {bgcolor: "rgba(0,0,0,0)", color: color("--soft"), activecolor: color("--ink")},
      hoverlabel: {bgcolor: color("--panel"), font: {color: color("--ink")}}};
    delete full.width;
    const axes = Object.keys(layout).filter(key => /^[xy]axis/.test(key));
    for (const key of new Set([...axes, "xaxis", "yaxis"])) full[key] = axis(layout[key], key.startsWith("x"));
    if (isNarrow()) full.legend = {...full.legend, font: {size: 11}, entrywidth: 0.48, entrywidthmode: "fraction"};
    return full;
  };
  const options = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"]};
  const draw = place => {
    if (place.figure) return;
    const figure = JSON.parse(place.parentElement.querySelector("script").textContent);
    place.figure = figure;
    Plotly.newPlot(place, figure.data, themed(figure.layout), options);
  };
  // Drawn when they come into sight: a page with fifty figures opens at once.
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }, {rootMargin: "600px"});
  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach(place => seen.observe(place));
  window.addEventListener("beforeprint", () => plots.forEach(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    plots.filter(place => place.figure).forEach(place => Plotly.react(place, place.figure.data, themed(place.figure.layout), options)));

  const value = cell => { const text = cell.textContent.trim(); const number = parseFloat(text.replace(/,/g, ""));
    return text === "" ? null : Number.isNaN(number) ? text : number; };
  const compare = (a, b) => a === null ? 1 : b === null ? -1 : typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1;
  const sort = head => {
    const table = head.closest("table"), place = [...head.parentElement.children].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const x = value(a.cells[place]), y = value(b.cells[place]);
      return x === null || y === null ? compare(x, y) : compare(x, y) * (down ? -1 : 1);
    });
    table.tBodies[0].append(...rows);
  };
  for (const head of document.querySelectorAll("table.sortable th")) {
    head.addEventListener("click", () => sort(head));
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(head); });
  }
  for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", async () => {
    const pre = button.parentElement.querySelector("pre");
    try { await navigator.clipboard.writeText(pre.textContent); } catch {
      const range = document.createRange(); range.selectNodeContents(pre);
      getSelection().removeAllRanges(); getSelection().addRange(range); document.execCommand("copy");
    }
    button.textContent = "copied"; setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  document.getElementById("scores")?.addEventListener("change", event =>
    document.body.classList.toggle("noscores", !event.target.checked));
  for (const pair of document.querySelectorAll(".pair")) pair.addEventListener("click", () =>
    pair.parentElement.classList.toggle("large"));
  document.addEventListener("keydown", event => { if (event.key === "Escape")
    document.querySelectorAll(".picture.large").forEach(picture => picture.classList.remove("large")); });
})();
