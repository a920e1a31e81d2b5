// The search of the site runs in a worker, which browsers do not start for pages that are opened as files. There, this
// runs it in a hidden frame instead. Without this file, the theme would fetch its own from another server.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = new Promise((resolve) => (frame.ready = resolve));
      document.body.append(frame);
      this.inside = frame.contentWindow;
      const script = document.createElement("script");
      script.src = new URL(address, location.href);
      const page = frame.contentDocument;
      page.open();
      page.write("<script>postMessage = (data) => frameElement.answer(data);</" + "script>");
      script.setAttribute("onload", "frameElement.ready()");
      page.write(script.outerHTML);
      page.close();
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
    }
  };
}
