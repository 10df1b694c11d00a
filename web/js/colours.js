// Colours that carry a meaning: those of the pictures that accel/report draws, and a test holds the two equal. All
// others come from the theme.

// Anchors from nothing to the top, between which colours are interpolated.
export const SCALES = {
  "density": [[226, 240, 176], [146, 208, 168], [66, 158, 170], [40, 98, 148], [28, 38, 94]],
  "error": [[254, 221, 176], [246, 164, 112], [222, 94, 84], [160, 42, 92], [70, 12, 76]]
};

// Where the time of a run went.
export const TIMES = {
  "planning": [230, 159, 0],
  "kernel": [0, 114, 178],
  "dense": [204, 85, 30],
  "other": [168, 174, 184],
  "dense_steps": [190, 116, 160],
  "guard": [0, 140, 104],
  "recording": [96, 84, 160]
};

export const css = (colour) => `rgb(${colour.join(", ")})`;

/** The colour of a share 0..1 of a scale's top. */
export function colourOf(anchors, share) {
  const place = Math.min(Math.max(share, 0), 1) * (anchors.length - 1);
  const left = Math.min(Math.floor(place), anchors.length - 2);
  const mix = (value, channel) => Math.round(value + (anchors[left + 1][channel] - value) * (place - left));
  return css(anchors[left].map(mix));
}

/** A whole scale as a CSS background. */
export const gradient = (anchors) => `linear-gradient(to right, ${anchors.map(css).join(", ")})`;

/** The next of 1, 2, 5 times a power of ten that holds all values of a grid, at most 1; 1 for a grid without any. */
export function roundTop(grid) {
  const largest = Math.max(...grid.flat());
  if (largest <= 0 || largest >= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(largest));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= largest * (1 - 1e-9));
}
