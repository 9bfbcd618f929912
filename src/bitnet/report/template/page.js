// Chooses which samples are seen, and lets a double click on any curve show the whole run again. Drawing is Bokeh's.
"use strict";
(() => {
  const controls = document.querySelector(".controls");
  if (controls) {
    const prompt = document.getElementById("prompt");
    const mode = document.getElementById("mode");
    const show = () => {
      for (const one of document.querySelectorAll("[data-prompt]")) one.hidden = one.dataset.prompt !== prompt.value;
      for (const one of document.querySelectorAll("[data-mode]")) one.hidden = mode.value !== "" && one.dataset.mode !== mode.value;
    };
    for (const caption of document.querySelectorAll(".samples caption")) caption.hidden = true;
    controls.hidden = false;
    controls.addEventListener("change", show);
    show();
  }
  const curves = document.querySelector("#curves .figures");
  curves.addEventListener("dblclick", () => {
    for (const view of Object.values(window.Bokeh ? Bokeh.index : {})) {
      const range = view.model.x_range;
      if (range && range.bounds) [range.start, range.end] = range.bounds;
    }
  });
})();
