// Takes: one text, spoken once with a seed and a preset. A run is one or several of them.

import {streamSpeech} from "./api.js"
import {Sound} from "./sound.js"

const AT_ONCE = 4  // a browser opens six connections to a server, and the status needs one too
const CHARACTERS_PER_SECOND = 15

/** state: `waiting`, `speaking`, `done`, `stopped` or `failed`; ttfa: seconds from the request to the first audio, rtf:
 *  seconds until the last audio per second of it, both as this browser saw them. */
export class Take {
  sound = new Sound()
  state = "waiting"
  ttfa = null
  rtf = null
  error = ""
  /** {word, start, end, span: characters of the text}, as far as they are spoken, where the model can tell them. */
  words = []

  /** request: fields of /v1/audio/speech, with the seed; preset: its name. */
  constructor(request, preset) {
    this.request = request
    this.preset = preset
  }

  get expectedSeconds() {
    return expectedSeconds(this.request.input) / (this.request.speed ?? 1)
  }

  /** clip: a Blob to clone, or null; changed: called after each change of the state. */
  async speak(clip, signal, changed) {
    const started = performance.now()
    const seconds = () => (performance.now() - started) / 1_000
    this.state = "speaking"
    changed()
    try {
      signal.throwIfAborted()
      for await (const samples of streamSpeech(this.request, clip, signal, words => this.words.push(...words))) {
        this.ttfa ??= seconds()
        this.sound.push(samples)
        if (this.sound.length === samples.length) changed()
      }
      this.rtf = this.sound.length ? seconds() / this.sound.duration : null
      this.state = "done"
    } catch (error) {
      this.state = signal.aborted ? "stopped" : "failed"
      this.error = signal.aborted ? "" : error.message
      if (!signal.aborted) this.status = error.status
    }
    this.sound.finish()
    changed()
  }

  toRecord() {
    const {request, preset, state, ttfa, rtf, error, words} = this
    return {request, preset, state, ttfa, rtf, error, words, samples: this.sound.to16()}
  }

  static fromRecord({samples, ...fields}) {
    return Object.assign(new Take(), fields, {sound: Sound.of16(samples)})
  }
}

export const expectedSeconds = text => text.trim().length / CHARACTERS_PER_SECOND

/** run: {id, created, voice: its name, clip: a Blob or null, takes}. Speaks them, some at a time. */
export async function speakRun(run, signal, changed) {
  const waiting = [...run.takes]
  const work = async () => {
    for (let take; (take = waiting.shift()); ) await take.speak(run.clip, signal, () => changed(take))
  }
  await Promise.all(Array.from({length: AT_ONCE}, work))
}

export const toRecord = run => ({...run, takes: run.takes.map(take => take.toRecord())})
export const fromRecord = record => ({...record, takes: record.takes.map(Take.fromRecord)})

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1
