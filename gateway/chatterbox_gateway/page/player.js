// Plays one sound at a time, also one that is still growing, without gaps while its samples arrive in time.
//
// Buffers are scheduled one after the other on the context's clock. An AudioWorklet would need a secure context, which
// a machine that is reached by its address over plain HTTP is not.

import {SAMPLE_RATE} from "./api.js"

const LEAD = 0.03  // seconds between scheduling and playing
const REFILL = 0.4  // seconds of audio that are awaited after a stream has run dry

let context = null
let current = null

/** To be called by a click or key first: browsers start no audio otherwise. */
export function unlock() {
  context ??= new AudioContext({sampleRate: SAMPLE_RATE})
  context.resume()
}

/** Calls back when something begins or ceases to play. */
export function onPlaying(changed) {
  document.addEventListener("playing", changed)
}

/** Plays a sound from a position in seconds. Callbacks: `moved(seconds)`, each frame; `stopped()`, once. */
export function play(sound, from, callbacks) {
  stop()
  unlock()
  current = new Playback(sound, from, callbacks)
  current.begin()
  document.dispatchEvent(new Event("playing"))
}

/** Stops what plays. */
export function stop() {
  current?.stop()
}

export const isPlaying = sound => current?.sound === sound
export const isSilent = () => current === null

class Playback {
  #callbacks
  #read  // samples that are scheduled
  #nodes = new Set()
  #spans = []  // {at: context's time, from: seconds of the sound, length: seconds}
  #next = 0  // the context's time at which the scheduled audio ends
  #stopped = false

  constructor(sound, from, {moved, stopped}) {
    this.sound = sound
    this.#read = Math.min(sound.length, Math.round(from * SAMPLE_RATE))
    this.#callbacks = {moved, stopped}
  }

  begin() {
    this.sound.addEventListener("grow", this.#grow)
    requestAnimationFrame(this.#frame)
    this.#schedule()
  }

  #grow = () => this.#schedule()

  #schedule() {
    const {sound} = this
    const ready = (sound.length - this.#read) / SAMPLE_RATE
    const dry = this.#spans.length > 0 && this.#next <= context.currentTime
    if (ready > 0 && (!dry || sound.done || ready >= REFILL)) {
      const buffer = context.createBuffer(1, sound.length - this.#read, SAMPLE_RATE)
      buffer.copyToChannel(sound.samples.subarray(this.#read), 0)
      const at = Math.max(this.#next, context.currentTime + (this.#spans.length && !dry ? 0 : LEAD))
      this.#start(buffer, at)
      this.#spans.push({at, from: this.#read / SAMPLE_RATE, length: ready})
      this.#next = at + ready
      this.#read = sound.length
    }
    this.#endIfDone()
  }

  #start(buffer, at) {
    const node = new AudioBufferSourceNode(context, {buffer})
    node.connect(context.destination)
    node.onended = () => {
      this.#nodes.delete(node)
      this.#endIfDone()
    }
    node.start(at)
    this.#nodes.add(node)
  }

  #endIfDone() {
    if (this.sound.done && this.#read === this.sound.length && this.#nodes.size === 0) this.stop()
  }

  #frame = () => {
    if (this.#stopped) return
    const span = this.#spans.findLast(span => span.at <= context.currentTime)
    if (span) this.#callbacks.moved(span.from + Math.min(span.length, context.currentTime - span.at))
    requestAnimationFrame(this.#frame)
  }

  stop() {
    if (this.#stopped) return
    this.#stopped = true
    this.sound.removeEventListener("grow", this.#grow)
    for (const node of this.#nodes) {
      node.onended = null
      node.stop()
    }
    if (current === this) current = null
    this.#callbacks.stopped()
    document.dispatchEvent(new Event("playing"))
  }
}
