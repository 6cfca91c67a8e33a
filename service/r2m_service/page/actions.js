// What a person can do to a run: each asks first, and does nothing without a text.

import { run as at } from "./api.js";
import { $, show } from "./dom.js";

const WHY = "Why (kept in the audit trail)";

// The text that a person gave, or null. An empty one confirms nothing.
function confirmed(title, text, yes, field) {
  const dialog = $("ask");
  show("ask-title", title);
  show("ask-text", text);
  show("ask-name", field);
  show("ask-yes", yes);
  $("ask-input").value = "";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    const answered = () => done(dialog.returnValue === "yes" ? $("ask-input").value.trim() : null);
    dialog.addEventListener("close", answered, { once: true });
  });
}

$("ask-no").addEventListener("click", () => $("ask").close("no"));

export async function freeze(run, act) {
  const frozen = Boolean(run.frozen);
  const reason = await confirmed(
    frozen ? "Lift the freeze?" : "Freeze this run?",
    frozen ? `Frozen: ${run.frozen}. Aligns change the head again.` : "Scores go on; aligns are answered and change nothing, until the freeze is lifted.",
    frozen ? "Lift it" : "Freeze",
    WHY,
  );
  if (reason) await act(at(run.run), "PATCH", { frozen: !frozen, reason });
}

export async function rollBack(run, head, act) {
  const reason = await confirmed(
    `Back to head ${head.head}?`,
    `A new branch begins at head ${head.head} (step ${head.step}) and becomes the current one: scores by “live” change at once. Nothing is lost.`,
    "Roll back",
    WHY,
  );
  if (reason) await act(at(run.run, "/rollback"), "POST", { to: head.head, reason });
}

export async function promote(run, head, act) {
  const alias = await confirmed(
    `Point an alias at head ${head.head}`,
    "Scores by this alias come from this head from now on. “live” moves by rollback alone.",
    "Point it there",
    "Alias",
  );
  if (alias) await act(at(run.run, `/aliases/${encodeURIComponent(alias)}`), "PUT", { head: head.head });
}
