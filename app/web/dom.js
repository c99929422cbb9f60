// The few ways in which the page touches the document.

export const byId = (id) => document.getElementById(id);

/** An element with these properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A number as text: `digits` after the point, a true minus. */
export const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");

export const signed = (value) => (value < 0 ? "" : "+") + fixed(value, 3);

/** As many digits as give a range's width two significant ones; three at least. */
export const digitsOf = (low, high) => Math.min(8, Math.max(3, 1 - Math.floor(Math.log10(high - low || 1))));

/** A chosen one of several tabs or buttons: the arrow keys, Home and End go from one to the next. */
export function nextByKey(key, index, count) {
  const goal = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: -1 }[key];
  return goal === undefined ? null : (goal + count) % count;
}
