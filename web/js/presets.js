// The numbers behind the named presets: those of accel/attention/budget.py, and a test holds the two equal.
// `auto` chooses between faithful and few_step when sampling starts; until then faithful is shown.

export const CUSTOM = "custom";

export const PRESETS = {
  "auto": {
    "top_p": 0.9, "floor": 0.1, "max_density": 1.0, "dense_first": 0.2, "dense_last": 0.0,
    "dense_blocks": "0", "min_tokens": 12288
  },
  "faithful": {
    "top_p": 0.9, "floor": 0.1, "max_density": 1.0, "dense_first": 0.2, "dense_last": 0.0,
    "dense_blocks": "0", "min_tokens": 12288
  },
  "balanced": {
    "top_p": 0.8, "floor": 0.05, "max_density": 1.0, "dense_first": 0.2, "dense_last": 0.0,
    "dense_blocks": "0", "min_tokens": 12288
  },
  "turbo": {
    "top_p": 0.7, "floor": 0.03, "max_density": 1.0, "dense_first": 0.3, "dense_last": 0.0,
    "dense_blocks": "0", "min_tokens": 12288
  },
  "few_step": {
    "top_p": 0.9, "floor": 0.1, "max_density": 1.0, "dense_first": 0.1, "dense_last": 0.0,
    "dense_blocks": "0", "min_tokens": 12288
  }
};
