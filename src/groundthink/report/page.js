"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const read = (element) => JSON.parse(element.textContent);
  const template = read(document.getElementById("template"));
  const figures = [...document.querySelectorAll(".figure")].map((element) => ({
    plot: element.querySelector(".plot"),
    spec: read(element.querySelector("script")),
  }));
  const options = {
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtons: [["toImage", "resetScale2d"]],
    doubleClick: "reset",
  };

  // Any CSS colour -> rgba() of the present theme, by way of one canvas pixel: Plotly knows
  // neither custom properties nor color-mix().
  const probe = document.body.appendChild(document.createElement("i"));
  probe.hidden = true;
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  function color(css) {
    probe.style.color = css;
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = getComputedStyle(probe).color;
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
    return `rgba(${r},${g},${b},${a / 255})`;
  }
  function paint(value) {
    if (typeof value === "string") return value.includes("var(--") ? color(value) : value;
    if (Array.isArray(value)) return typeof value.at(-1) === "number" ? value : value.map(paint);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item)]));
  }

  function draw({ plot, spec }) {
    const layout = paint(spec.layout);
    layout.template = paint(template);
    layout.width = plot.clientWidth;
    layout.uirevision = "keep";
    if (layout.width < 440) tighten(layout);
    if (touch) freeze(layout);
    // A redraw at another width would place the legend by the height of its former rows.
    const render = plot.layout?.width === layout.width ? Plotly.react : Plotly.newPlot;
    render(plot, paint(spec.data), layout, options);
  }
  // On a phone the labels of horizontal lines move from the margin into the drawing.
  function tighten(layout) {
    layout.margin = { ...layout.margin, l: 44, r: 10 };
    for (const note of layout.annotations ?? []) {
      if (note.x === 1) Object.assign(note, { xanchor: "right", yanchor: "bottom", xshift: 0 });
    }
  }
  // A finger scrolls the page, not the axes; a tap still reads values.
  function freeze(layout) {
    layout.dragmode = false;
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) layout[key].fixedrange = true;
    }
  }
  const drawAll = () => figures.forEach(draw);

  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  function retheme() {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
    drawAll();
  }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    retheme();
  });
  dark.addEventListener("change", retheme);

  const moves = { "+": [0.25, -0.25], "-": [-0.5, 0.5], ArrowLeft: [-0.2, -0.2], ArrowRight: [0.2, 0.2] };
  function press(event) {
    const plot = event.currentTarget;
    if (event.target !== plot || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "0") Plotly.relayout(plot, { "xaxis.autorange": true, "yaxis.autorange": true });
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const range = plot.layout.xaxis.range;
    const width = range[1] - range[0];
    Plotly.relayout(plot, { "xaxis.range": range.map((end, i) => end + move[i] * width) });
  }

  let before = null;
  function enterPrint() {
    if (before) return;
    const closed = [...document.querySelectorAll("details:not([open])")];
    before = { theme: root.dataset.theme, closed };
    closed.forEach((element) => (element.open = true));
    root.dataset.theme = "light";
    root.dataset.print = "";
    drawAll();
  }
  function leavePrint() {
    if (!before) return;
    before.closed.forEach((element) => (element.open = false));
    if (before.theme) root.dataset.theme = before.theme;
    else delete root.dataset.theme;
    delete root.dataset.print;
    before = null;
    drawAll();
  }
  addEventListener("beforeprint", enterPrint);
  addEventListener("afterprint", leavePrint);
  matchMedia("print").addEventListener("change", (event) => (event.matches ? enterPrint() : leavePrint()));

  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const figure = figures.find(({ plot }) => plot === target);
      if (target.layout && target.clientWidth !== target.layout.width) draw(figure);
    }
  });
  button.textContent = isDark() ? "Light theme" : "Dark theme";
  // One figure at a time, so that the text is readable and scrolls while the rest is drawn.
  const waiting = [...figures];
  (function next() {
    const figure = waiting.shift();
    if (!figure) {
      root.dataset.drawn = String(figures.length);
      return;
    }
    draw(figure);
    figure.plot.addEventListener("keydown", press);
    resized.observe(figure.plot);
    setTimeout(next);
  })();
})();
