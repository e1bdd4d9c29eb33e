// Addresses of views, and the state that the head of the page shows.

import { setText } from "/static/dom.js";

/** An address in this page. values: what stands behind the question mark. */
export function address(view, values = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== null && one !== undefined && one !== "") query.append(name, one);
  }
  const text = query.toString();
  return `#/${view}${text ? `?${text}` : ""}`;
}

/** Show a run's state in the head. */
export function showState(status) {
  const state = document.getElementById("state");
  setText(state, status ? status.state : "");
  if (status) state.dataset.state = status.state;
  else delete state.dataset.state;
}
