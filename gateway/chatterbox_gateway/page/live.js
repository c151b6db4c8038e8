// The server's state, asked for while the page is visible.

import {health, status} from "./api.js"

const EVERY = 3_000  // milliseconds

const byId = id => document.getElementById(id)
const shown = value => value ?? "–"

export function watchServer() {
  let timer = null
  const look = async () => {
    clearTimeout(timer)
    if (document.hidden) return
    await Promise.all([showHealth(), showStatus()])
    timer = setTimeout(look, EVERY)
  }
  document.addEventListener("visibilitychange", look)
  look()
}

async function showHealth() {
  try {
    await health()
    show("ready", "")
  } catch (error) {
    show(error.status ? "not ready" : "not reachable", error.message)
  }
}

function show(state, reason) {
  const place = byId("ready")
  if (place.textContent !== state) place.textContent = state
  place.title = reason
  place.parentElement.dataset.state = state
}

async function showStatus() {
  const now = await status().catch(() => ({}))  // /health shows what is wrong
  const {slots_active: active, slots_free: free} = now
  byId("slots").textContent = active == null ? "–" : `${active} of ${active + free}`
  byId("queue").textContent = shown(now.queue)
  byId("rtf").textContent = now.rtf_mean == null ? "–" : now.rtf_mean.toFixed(2)
}
