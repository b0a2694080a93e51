// Which class a text means: the rule of sptrace/runtime/targets.py.
const INDEX = /^[+-]?[0-9]+$/;
const namesOf = (label) => [label, ...label.split(",")].map((name) => name.trim().toLowerCase());

// Digits are an index, -1 the predicted class; any other text is a name, and so is what stands behind "label:".
// Returns { index }, or { error } with what to say.
export function classOf(text, labels, units) {
  text = text.trim();
  if (text.startsWith("label:")) return named(text.slice("label:".length).trim(), labels);
  if (!INDEX.test(text)) return named(text, labels);
  const index = Number(text);
  if (index >= -1 && index < units) return { index: index < 0 ? -1 : index };
  if (labels.some((label) => namesOf(label).includes(text))) return named(text, labels);
  return { error: `There is no class ${text}: give 0 to ${units - 1}.` };
}

function named(name, labels) {
  const every = [...labels.keys()], wanted = name.toLowerCase();
  let found = every.filter((index) => labels[index].trim() === name);
  if (!found.length) found = every.filter((index) => namesOf(labels[index]).includes(wanted));
  // Part of a word is enough where it leaves no choice.
  if (!found.length && wanted) found = every.filter((index) => labels[index].toLowerCase().includes(wanted));
  if (found.length === 1) return { index: found[0] };
  if (!found.length) return { error: `No class is called “${name}”.` };
  const listed = found.slice(0, 9).map((index) => `${index} (${labels[index]})`).join(", ");
  return { error: `“${name}” is the name of several classes: ${listed}${found.length > 9 ? ", …" : ""}. Give a number.` };
}
