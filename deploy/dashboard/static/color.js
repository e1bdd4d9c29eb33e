// Colours: those of the theme, and the scale of rewards, which also holds for eyes that see no red or no green (cividis).

const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [149, 143, 120], [201, 185, 104], [254, 232, 56]];

/** A colour of the theme as the browser resolves it now. name: of a custom property, like "--accent". */
export function themed(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

/** The colour of a reward in [0, 1]; grey where there is none. */
export function rewardColor(value) {
  if (value === null || value === undefined) return "rgb(128 138 145)";
  return rgb(mixed(value));
}

/** Black or white, whichever reads better on the colour of a reward. */
export function inkOn(value) {
  const [r, g, b] = value === null || value === undefined ? [128, 138, 145] : mixed(value);
  return 0.299 * r + 0.587 * g + 0.114 * b > 128 ? "#10151a" : "#ffffff";
}

function mixed(value) {
  const place = Math.min(Math.max(value, 0), 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(place), CIVIDIS.length - 2);
  return CIVIDIS[low].map((channel, i) => channel + (CIVIDIS[low + 1][i] - channel) * (place - low));
}

function rgb(channels) {
  return `rgb(${channels.map(Math.round).join(" ")})`;
}
