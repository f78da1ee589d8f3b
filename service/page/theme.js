// Light, dark, or the system's setting; stored in this browser. Runs before the page is drawn.
"use strict";

(() => {
  const NEXT = { auto: "light", light: "dark", dark: "auto" };
  const NAMES = { auto: "system", light: "light", dark: "dark" };

  function remembered() {
    try {
      const theme = localStorage.getItem("theme");
      return theme in NEXT ? theme : "auto";
    } catch {
      return "auto"; // A browser may deny access to its storage.
    }
  }

  function apply(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (!button) return;
    button.setAttribute("aria-label", `Colours: ${NAMES[theme]}. Change to ${NAMES[NEXT[theme]]}`);
    button.title = `Colours: ${NAMES[theme]}`;
  }

  apply(remembered());
  document.addEventListener("DOMContentLoaded", () => {
    apply(remembered());
    document.getElementById("theme")?.addEventListener("click", () => {
      const theme = NEXT[document.documentElement.dataset.theme];
      try {
        localStorage.setItem("theme", theme);
      } catch { /* Not stored: it lasts until the page is closed. */ }
      apply(theme);
    });
  });
})();
