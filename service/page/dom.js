// Making and finding elements. Text is always set as text, never as markup.

export const byId = (id) => document.getElementById(id);

export function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function button(text, onClick, className = "") {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

// Names that people gave may be written in either direction.
export function named(name, className, text) {
  const made = element(name, className, text);
  made.dir = "auto";
  return made;
}

export function show(part, visible) {
  part.hidden = !visible;
}

// Every dialog closes by its own buttons, by Escape, and by a click beside it.
export function closable(dialog) {
  for (const part of dialog.querySelectorAll("[data-close]")) part.addEventListener("click", () => dialog.close());
  dialog.addEventListener("pointerdown", (event) => {
    if (event.target !== dialog) return;
    const box = dialog.getBoundingClientRect();
    const inside = event.clientX >= box.left && event.clientX <= box.right
      && event.clientY >= box.top && event.clientY <= box.bottom;
    if (!inside) dialog.close();
  });
  return dialog;
}
