// Hands files to the kernel piece by piece (an anywidget module): one message would be cut off by a server's limit.
const PIECE_BYTES = 2 ** 20, PATIENCE_MS = 20000;

function render({ model, el }) {
  const input = document.createElement("input");
  const said = document.createElement("output");
  Object.assign(input, { type: "file", accept: "audio/*", multiple: true });
  input.setAttribute("aria-label", "Upload stems");
  said.className = "lc-said";
  el.append("Upload stems ", input, said);
  let answered = () => {};

  // Sends a message, and waits for the kernel's answer to it.
  function ask(content, ...buffers) {
    return new Promise((resolve, reject) => {
      const lost = () => reject(new Error("no answer: the connection to the kernel is lost, nothing has arrived"));
      const timer = setTimeout(lost, PATIENCE_MS);
      answered = ({ error }) => { clearTimeout(timer); error ? reject(new Error(error)) : resolve(); };
      model.send(content, undefined, buffers);
    });
  }

  async function send(files) {
    const total = files.reduce((sum, file) => sum + file.size, 0);
    const most_files = model.get("most_files"), most_bytes = model.get("most_bytes");
    if (files.length > most_files) throw new Error(`a desk takes 1 to ${most_files} stems, got ${files.length}: nothing was sent`);
    const mb = (bytes) => `${Math.ceil(bytes / 1e6)} MB`;
    if (total > most_bytes) throw new Error(`${mb(total)} are more than the ${mb(most_bytes)} that a desk takes: nothing was sent`);
    let sent = 0;
    for (const [index, file] of files.entries()) {
      for (let at = 0; at === 0 || at < file.size; at += PIECE_BYTES) { // an empty file is a piece too
        const piece = await file.slice(at, at + PIECE_BYTES).arrayBuffer();
        await ask({ file: index, name: file.name, at }, piece);
        sent += piece.byteLength;
        said.textContent = `${Math.floor((100 * sent) / Math.max(1, total))}% of ${mb(total)}`;
      }
    }
    await ask({ files: files.length });
  }

  input.onchange = async () => {
    input.disabled = true;
    said.textContent = "";
    said.removeAttribute("role");
    try {
      await send([...input.files]);
      said.textContent = "";
    } catch (error) {
      said.setAttribute("role", "alert");
      said.textContent = error.message;
    }
    input.value = "";
    input.disabled = false;
  };
  const hear = (content) => answered(content);
  model.on("msg:custom", hear);
  return () => model.off("msg:custom", hear);
}

export default { render };
