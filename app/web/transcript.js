// Text that somebody pastes → a conversation and responses: JSON as the API, trainers or data sets write it,
// ChatML, or turns that begin with a name.

const NAMES = { human: "user", user: "user", assistant: "assistant", ai: "assistant", system: "system", tool: "tool" };
const CHATML = /<\|im_start\|>(\w+)\n([\s\S]*?)(?:<\|im_end\|>|$)/g;
const NAMED = /^(human|user|assistant|ai|system|tool)\s*:[ \t]*/gim;

// {messages, responses}, or null where no conversation can be made out.
export function read(text) {
  const found = fromJson(text) ?? fromTurns(chatml(text)) ?? fromTurns(named(text));
  return found?.messages.length && found.responses.length ? found : null;
}

function fromJson(text) {
  const [line] = text.trim().split("\n");
  for (const one of [text, line]) {
    try {
      return fromObject(JSON.parse(one));
    } catch {
      continue;
    }
  }
  return null;
}

function fromObject(found) {
  if (Array.isArray(found)) return found[0]?.role ? fromTurns(found.map(turn)) : fromObject(found[0]);
  if (found.inputs ?? found.pairs) return fromObject(found.inputs ?? found.pairs);
  const opening = asTurns(found.messages ?? found.prompt ?? []);
  const answers = found.responses ?? [found.response, found.chosen, found.rejected].filter((one) => one !== undefined);
  if (!answers.length) return fromTurns(opening);
  const last = answers.map((one) => (Array.isArray(one) ? one.at(-1).content : String(one)));
  return { messages: opening.length ? opening : asTurns(answers[0].slice(0, -1)), responses: last };
}

function asTurns(found) {
  return typeof found === "string" ? [{ role: "user", content: found }] : [...found].map(turn);
}

function turn({ role, content }) {
  return { role: NAMES[String(role).toLowerCase()] ?? "user", content: String(content) };
}

function chatml(text) {
  return [...text.matchAll(CHATML)].map(([, role, content]) => turn({ role, content }));
}

function named(text) {
  const heads = [...text.matchAll(NAMED)];
  return heads.map((head, i) => {
    const content = text.slice(head.index + head[0].length, heads[i + 1]?.index).trim();
    return turn({ role: head[1], content });
  });
}

// The last turn is the response, if it is the assistant's.
function fromTurns(turns) {
  if (turns.length < 2 || turns.at(-1).role !== "assistant") return null;
  return { messages: turns.slice(0, -1), responses: [turns.at(-1).content] };
}
