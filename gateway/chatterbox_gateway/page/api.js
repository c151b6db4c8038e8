// Calls of the gateway. Addresses are relative to the page, so that it works behind a sub-path.

import {apiKey} from "./state.js"

export const SAMPLE_RATE = 24_000

/** A refusal in the server's words, or the lack of an answer (status 0). */
export class ApiError extends Error {
  constructor(status, message) {
    super(message)
    this.status = status
  }
}

export const modelInfo = model => json(`model/info${model ? `?model=${encodeURIComponent(model)}` : ""}`)
export const models = async () => (await json("v1/models")).data.map(model => model.id)
export const voices = async () => (await json("v1/audio/voices")).voices.map(voice => voice.id)
export const health = () => json("health")
export const status = () => json("status")

export async function addVoice(name, clip) {
  const body = new FormData()
  body.set("name", name)
  body.set("audio_sample", clip)
  await call("v1/audio/voices", {method: "POST", body})
}

export const deleteVoice = name => call(`v1/audio/voices/${encodeURIComponent(name)}`, {method: "DELETE"})

const untimed = new Set()  // models that cannot tell when words are spoken

/** Speaks and yields samples (Float32Array at SAMPLE_RATE) as they arrive. Aborting the signal cancels the request.
 *  request: fields of /v1/audio/speech; clip: a Blob to clone, or null; heard: takes lists of words ({word, start, end,
 *  span}) as they are spoken, where the model can tell them. */
export async function* streamSpeech(request, clip, signal, heard = () => {}) {
  const answer = await timedSpeech({...request, response_format: "pcm", sample_rate: SAMPLE_RATE}, clip, signal)
  const events = answer.headers.get("Content-Type").startsWith("text/event-stream")
  const pieces = piecesOf(answer.body.getReader(), signal)
  let rest = new Uint8Array()
  for await (const value of events ? audioOf(pieces, heard) : pieces) {
    const bytes = new Uint8Array(rest.length + value.length)  // pieces may end amid a sample
    bytes.set(rest)
    bytes.set(value, rest.length)
    rest = bytes.slice(bytes.length & ~1)
    if (bytes.length > 1) yield samplesOf(new DataView(bytes.buffer, 0, bytes.length & ~1))
  }
}

async function timedSpeech(fields, clip, signal) {
  if (!untimed.has(fields.model)) {
    try {
      return await speech({...fields, stream_format: "sse", word_times: true}, clip, signal)
    } catch (error) {
      if (error.status !== 400 || !error.message.startsWith("word_times")) throw error
      untimed.add(fields.model)
    }
  }
  return speech(fields, clip, signal)
}

async function* piecesOf(reader, signal) {
  while (true) {
    const {done, value} = await reader.read().catch(error => {
      throw signal.aborted ? error : new ApiError(0, "the stream broke off before its end")
    })
    if (done) return
    yield value
  }
}

/** The audio in a stream of events. */
async function* audioOf(pieces, heard) {
  const decoder = new TextDecoder()
  let rest = ""
  for await (const piece of pieces) {
    const lines = (rest + decoder.decode(piece, {stream: true})).split("\n")
    rest = lines.pop()
    for (const line of lines.filter(line => line.startsWith("data: "))) {
      const event = JSON.parse(line.slice(6))
      if (event.type === "error") throw new ApiError(0, event.error.message)
      if (event.type === "speech.audio.words") heard(event.words)
      if (event.type === "speech.audio.delta") yield Uint8Array.from(atob(event.audio), letter => letter.charCodeAt(0))
      if (event.type === "speech.audio.done") return
    }
  }
  throw new ApiError(0, "the stream broke off before its end")
}

/** Speaks into a file of a format, as a Blob. */
export const speechFile = async (request, clip, format) =>
  (await speech({...request, response_format: format}, clip)).blob()

async function speech(fields, clip, signal) {
  const reference = clip ? {reference_audio: await dataUri(clip)} : {}
  const body = JSON.stringify({...fields, ...reference})
  return call("v1/audio/speech", {method: "POST", headers: {"Content-Type": "application/json"}, body, signal})
}

const json = async path => (await call(path)).json()

async function call(path, options = {}) {
  const key = apiKey()
  const headers = {...options.headers, ...(key ? {Authorization: `Bearer ${key}`} : {})}
  const answer = await fetch(path, {...options, headers}).catch(error => {
    throw options.signal?.aborted ? error : new ApiError(0, "the gateway cannot be reached")
  })
  if (!answer.ok) throw new ApiError(answer.status, await reason(answer))
  return answer
}

async function reason(answer) {
  const text = await answer.text()
  try {
    const body = JSON.parse(text)
    return body.error?.message ?? body.detail ?? text
  } catch {  // a proxy's page
    return `${answer.status} ${answer.statusText}`.trim()
  }
}

function samplesOf(view) {
  const samples = new Float32Array(view.byteLength / 2)
  for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true) / 32_768
  return samples
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader()
    reader.onload = () => resolve(reader.result)
    reader.onerror = () => reject(reader.error)
    reader.readAsDataURL(blob)
  })
}
