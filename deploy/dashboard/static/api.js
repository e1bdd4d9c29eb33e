// What the server is asked. Answers are data; nothing of them is ever run.

const ASK_MS = 10_000;
const PATIENCE = 10; // how often a server that is busy is asked again

/** GET /api/PATH. Values that are arrays are given several times; null and "" are left out. Throws an Error with the server's sentence. */
export async function get(path, values = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(name, one);
    }
  }
  let response = await fetch(`/api/${path}?${query}`, { signal });
  for (let tries = 0; response.status === 503 && tries < PATIENCE; tries++) {
    await new Promise((go) => setTimeout(go, 1000 * Number(response.headers.get("retry-after") ?? 5)));
    response = await fetch(`/api/${path}?${query}`, { signal });
  }
  if (response.status === 401) location.assign("/login");
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.problem ?? `the server answered ${response.status}`);
  return answer;
}

/** Follow a run: `onStatus` is called with its status whenever anything of it changed. Returns a function that ends it.
 *  Where the server has no stream to give, it is asked now and then. */
export function follow(name, onStatus) {
  let source = null, timer = null, ended = false;
  function listen() {
    source = new EventSource(`/api/events?${new URLSearchParams({ name })}`);
    source.addEventListener("status", (event) => onStatus(JSON.parse(event.data)));
    source.addEventListener("error", () => { if (source.readyState === EventSource.CLOSED && !ended) timer = setTimeout(ask, ASK_MS); });
  }
  async function ask() {
    try { onStatus(await get("run", { name })); } catch { /* it is asked again */ }
    if (!ended) listen();
  }
  listen();
  return () => { ended = true; clearTimeout(timer); source.close(); };
}

/** Call `work` now if it has been quiet, else once the time is over; never twice at a time. */
export function throttled(work, milliseconds) {
  let timer = null, running = false, again = false, last = 0;
  async function go() {
    timer = null;
    if (running) { again = true; return; }
    running = true;
    last = performance.now();
    try { await work(); } finally { running = false; }
    if (again) { again = false; call(); }
  }
  function call() {
    if (timer === null) timer = setTimeout(go, Math.max(0, last + milliseconds - performance.now()));
  }
  call.cancel = () => { clearTimeout(timer); timer = null; again = false; };
  return call;
}
