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

// Runs `act` for a press of a button or a form's submit; until it has ended, a second press does nothing.
export async function once(control, act) {
  if (control.disabled) return;
  control.disabled = true;
  try {
    await act();
  } finally {
    control.disabled = false;
  }
}

// Names that users gave may be of either text direction.
export function named(name, className, text) {
  const made = element(name, className, text);
  made.dir = "auto";
  return made;
}

export function show(part, visible) {
  part.hidden = !visible;
}

// Every dialog closes by its buttons and Escape, and by a click outside unless it has text fields.
export function closable(dialog) {
  for (const part of dialog.querySelectorAll("[data-close]")) part.addEventListener("click", () => dialog.close());
  dialog.addEventListener("mousedown", (event) => {
    const isSecondOfTwo = event.detail > 1; // The first may have opened the dialog.
    if (event.target !== dialog || isSecondOfTwo || dialog.querySelector("textarea")) return;
    const box = dialog.getBoundingClientRect();
    const inside = event.clientX >= box.left && event.clientX <= box.right
      && event.clientY >= box.top && event.clientY <= box.bottom;
    if (!inside) dialog.close();
  });
  return dialog;
}
