// Browsers start no worker from a page that was opened from a disk. The search's worker runs in a
// hidden frame there, so that the site needs neither a server nor a script from elsewhere.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      const waiting = []
      this.postMessage = data => waiting.push(data)
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inside.document.createElement("script")
      script.src = new URL(url, location.href)
      script.onload = () => {
        this.postMessage = data => inside.dispatchEvent(new MessageEvent("message", { data }))
        waiting.forEach(this.postMessage)
      }
      inside.document.body.append(script)
      this.terminate = () => frame.remove()
    }
  }
}
