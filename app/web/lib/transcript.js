// Parses pasted text into a conversation and responses: JSON as the API, trainers or data sets write it, ChatML, or
// turns that begin with a role name.

const ROLE_NAMES = {
  human: "user",
  user: "user",
  assistant: "assistant",
  ai: "assistant",
  system: "system",
  tool: "tool",
};
const CHATML_TURN = /<\|im_start\|>(\w+)\n([\s\S]*?)(?:<\|im_end\|>|$)/g;
const NAMED_TURN = /^(human|user|assistant|ai|system|tool)\s*:[ \t]*/gim;

// Returns {messages, responses}, or null if the text is no conversation.
export function parseTranscript(text) {
  const transcript = fromJson(text) ?? fromTurns(chatmlTurns(text)) ?? fromTurns(namedTurns(text));
  return transcript?.messages.length && transcript.responses.length ? transcript : null;
}

// The whole text as JSON, or else its first line (JSONL).
function fromJson(text) {
  const [firstLine] = text.trim().split("\n");
  for (const json of [text, firstLine]) {
    try {
      return fromObject(JSON.parse(json));
    } catch {}
  }
  return null;
}

function fromObject(value) {
  if (Array.isArray(value)) return value[0]?.role ? fromTurns(value.map(turn)) : fromObject(value[0]);
  if (value.inputs ?? value.pairs) return fromObject(value.inputs ?? value.pairs);
  const prompt = toTurns(value.messages ?? value.prompt ?? []);
  const answers =
    value.responses ?? [value.response, value.chosen, value.rejected].filter((text) => text !== undefined);
  if (!answers.length) return fromTurns(prompt);
  const responses = answers.map((answer) => (Array.isArray(answer) ? answer.at(-1).content : String(answer)));
  return { messages: prompt.length ? prompt : toTurns(answers[0].slice(0, -1)), responses };
}

function toTurns(prompt) {
  return typeof prompt === "string" ? [{ role: "user", content: prompt }] : [...prompt].map(turn);
}

function turn({ role, content }) {
  return { role: ROLE_NAMES[String(role).toLowerCase()] ?? "user", content: String(content) };
}

function chatmlTurns(text) {
  return [...text.matchAll(CHATML_TURN)].map(([, role, content]) => turn({ role, content }));
}

function namedTurns(text) {
  const starts = [...text.matchAll(NAMED_TURN)];
  return starts.map((start, i) => {
    const content = text.slice(start.index + start[0].length, starts[i + 1]?.index).trim();
    return turn({ role: start[1], content });
  });
}

// The last turn becomes the response; it must be the assistant's.
function fromTurns(turns) {
  if (turns.length < 2 || turns.at(-1).role !== "assistant") return null;
  return { messages: turns.slice(0, -1), responses: [turns.at(-1).content] };
}
