"use strict";
// What the other scripts of the page share: elements from text (never from markup), numbers, the theme.

const DATA = JSON.parse(document.getElementById("report-data").textContent);

/** An element with attributes; children are elements or text, and text stays text. null and false are left out. */
function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

function shown(value, digits) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

function seconds(value) {
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

/** Light, dark, or what the system says; remembered where the browser lets a file remember anything. */
function theme() {
  const button = document.getElementById("theme");
  const names = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" };
  const order = Object.keys(names);
  let chosen = "auto";
  try {
    const stored = localStorage.getItem("slt-report-theme");
    if (order.includes(stored)) chosen = stored;
  } catch { /* storage is switched off */ }
  const show = () => {
    if (chosen === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    button.textContent = names[chosen];
  };
  button.addEventListener("click", () => {
    chosen = order[(order.indexOf(chosen) + 1) % order.length];
    try {
      localStorage.setItem("slt-report-theme", chosen);
    } catch { /* as above */ }
    show();
  });
  button.hidden = false;
  show();
}
theme();
