"use strict";
// Draws the plots that stand in #data, in the colours of the light or the dark scheme.
(() => {
  const { palette, plots } = JSON.parse(document.getElementById("data").textContent);
  const darkScheme = matchMedia("(prefers-color-scheme: dark)");
  const toDark = new Map(Object.values(palette));
  const config = {
    responsive: true,
    displaylogo: false,
    // In a narrow window it would lie upon the legend; two fingers do the same.
    displayModeBar: innerWidth < 700 ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "sendDataToCloud"],
    plotlyServerURL: "",
    showSendToCloud: false,
  };

  // A deep copy with the colours of the dark scheme, where that is the one in use.
  function coloured(value) {
    if (typeof value === "string") return toDark.get(value) ?? value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
    }
    return value;
  }

  function draw() {
    const dark = darkScheme.matches;
    const work = plots.map(async ({ id, data, layout }) => {
      const place = document.getElementById("plot-" + id);
      const figure = structuredClone({ data, layout });
      const made = dark ? coloured(figure) : figure;
      try {
        await Plotly.react(place, made.data, made.layout, config);
        place.dataset.drawn = dark ? "dark" : "light";
      } catch (problem) {
        place.textContent = "This plot could not be drawn: " + problem;
      }
    });
    return Promise.all(work);
  }

  darkScheme.addEventListener("change", draw);
  draw();
})();
