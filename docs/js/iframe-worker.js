// Search in a site opened from a folder: browsers refuse workers under file:, so the search script
// runs in a hidden frame instead. Loaded on every page; does nothing behind a server.
if (location.protocol === "file:") {
  const READY = "frame is ready";
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc =
        "<script>window.postMessage = (data) => parent.postMessage(data, '*')</script>" +
        `<script src="${new URL(url, location.href)}"></script>` +
        `<script>window.postMessage("${READY}")</script>`;
      window.addEventListener("message", (event) => {
        if (event.source !== frame.contentWindow) return;
        if (event.data === READY) {
          // The frame's own postMessage leads here, so it is reached through its events.
          this.send = (data) =>
            frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
          this.waiting.forEach(this.send);
        } else this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
      document.documentElement.append(frame);
    }
    postMessage(data) {
      if (this.send) this.send(data);
      else this.waiting.push(data);
    }
  };
}
