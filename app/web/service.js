// What the page asks of the service, and what it is told when that fails.

const KEY = "nam-key";

/** An answer that is not 200, or none at all; `code` is the contract's, or `network`, or `unknown`. */
export class Problem extends Error {
  constructor(code, { status = 0, detail = "", request_id = "" } = {}) {
    super(code);
    Object.assign(this, { code, status, detail, id: request_id });
  }
}

let key = inTab((storage) => storage.getItem(KEY));

export const hasKey = () => key !== null;

/** The key for what is asked from now on; for this tab where its browser keeps anything, else for this page alone. */
export function keepKey(given) {
  key = given;
  inTab((storage) => storage.setItem(KEY, given));
}

/** What `use` does with the tab's storage; null where the browser blocks it. */
function inTab(use) {
  try {
    return use(sessionStorage);
  } catch {
    return null;
  }
}

/** The answer to a request. Throws a Problem; an AbortError where `signal` says so. */
async function ask(path, options) {
  const headers = { ...options.headers };
  if (hasKey()) headers.Authorization = `Bearer ${sendable(key)}`;
  const answer = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Problem("network");
  });
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

/** The key; one that no header can carry is refused here, for `fetch` would fail as if there were no service. */
function sendable(given) {
  if (!/^[ -~]*$/.test(given)) throw new Problem("unauthorized");
  return given;
}

async function problemOf(answer) {
  const told = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return {};
  });
  return new Problem(told.code ?? "unknown", { status: answer.status, ...told });
}

/** The model card. */
export const askCard = async () => (await ask("/model", {})).json();

/** An example photo's bytes. */
export const askExample = async (path, signal) => (await ask(path, { signal })).blob();

/** A photo sent to `path`, its bytes as they are: the first of them say what it is. */
export const askPhoto = (path, photo, signal) =>
  ask(path, { method: "POST", body: photo.blob, headers: { "Content-Type": mediaType(photo) }, signal });

const mediaType = (photo) => (photo.blob.type.startsWith("image/") ? photo.blob.type : "application/octet-stream");

/** The shell's way to the same answer. A key is named, never written out. */
export function curl(path, photo) {
  const authorization = hasKey() ? ' -H "Authorization: Bearer $NAM_KEY"' : "";
  const line = `curl -s ${quoted(location.origin + path)}${authorization} -H ${quoted(`Content-Type: ${mediaType(photo)}`)} --data-binary`;
  return photo.source ? `curl -s ${quoted(location.origin + photo.source)} | ${line} @-` : `${line} @${quoted(photo.name)}`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
