// What the server is asked. Answers are data; nothing of them is ever run.

/** GET /api/PATH. Values that are arrays are given several times; null and "" are left out. Throws an Error with the server's sentence. */
export async function get(path, values = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(name, one);
    }
  }
  const response = await fetch(`/api/${path}?${query}`, { signal });
  if (response.status === 401) location.assign("/login");
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.problem ?? `the server answered ${response.status}`);
  return answer;
}

/** Follow a run: `onStatus` is called with its status whenever anything of it changed. Returns a function that ends it. */
export function follow(name, onStatus) {
  const source = new EventSource(`/api/events?${new URLSearchParams({ name })}`);
  source.addEventListener("status", (event) => onStatus(JSON.parse(event.data)));
  return () => source.close();
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
