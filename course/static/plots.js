// a figure follows the width of its page: plotly itself only follows the window's
window.addEventListener("load", () => {
  const watch = new ResizeObserver((entries) => entries.forEach((entry) => Plotly.Plots.resize(entry.target)));
  document.querySelectorAll(".js-plotly-plot").forEach((plot) => watch.observe(plot));
});
