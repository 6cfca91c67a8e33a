// The server's own interface, and nothing else: what this page can do, curl can.

const KEY = "r2m-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

// An answer's JSON. Errors are the server's own sentences.
export async function ask(path, { method = "GET", body } = {}) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    // Relative: a proxy may serve this page below a path.
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
    });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const told = answer.error ?? {};
    const error = new Error(told.message ?? `The server answered ${response.status}.`);
    error.code = told.code;
    throw error;
  }
  return answer;
}

export const run = (name, rest = "") => `v1/runs/${encodeURIComponent(name)}${rest}`;
