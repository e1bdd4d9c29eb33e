// Elements are made here and nowhere else: texts become text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element. props: attributes; `on…` are listeners, `class` a string, null and false are left out. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** An SVG element. */
export function s(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A choice among [value, words], after the words for choosing none. Where the values are still to come, the chosen one is there already. */
export function choice(none, options, chosen = null) {
  const element = h("select", {}, h("option", { value: "" }, none));
  offer(element, chosen && !options.length ? [[chosen, chosen]] : options);
  element.value = chosen ?? "";
  if (element.selectedIndex < 0) element.value = "";
  return element;
}

/** Add those of [value, words] that a choice does not have yet. */
export function offer(element, options) {
  const known = new Set([...element.options].map((option) => option.value));
  element.append(...options.filter(([value]) => !known.has(value)).map(([value, words]) => h("option", { value }, words)));
}

/** Put these children in the place of all that were there; null and false are left out. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Set a text only where it changed, so that nothing is announced twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A table that scrolls sideways where it is too wide. columns: [title, class?]; rows: arrays of cells. */
export function table(label, columns, rows) {
  const head = columns.map(([title, kind]) => h("th", { scope: "col", class: kind }, title));
  const body = rows.map((cells) => h("tr", {}, cells.map((cell, i) => h("td", { class: columns[i][1] }, cell))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

/** Facts as a list of terms. pairs: [name, value]. */
export function facts(pairs, kind = "facts") {
  return h("dl", { class: kind }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
