// Records the microphone.

const LONGEST = 60  // seconds

/** A recording under way. Raises an Error that says why the microphone cannot be used. */
export async function startRecording() {
  if (!navigator.mediaDevices) {
    throw new Error("browsers allow the microphone only over HTTPS and on localhost: upload a clip")
  }
  const wanted = {audio: {echoCancellation: false, noiseSuppression: false, autoGainControl: true}}
  const stream = await navigator.mediaDevices.getUserMedia(wanted).catch(error => {
    const known = {NotAllowedError: "the microphone is not allowed", NotFoundError: "there is no microphone"}
    throw new Error(known[error.name] ?? error.message)
  })
  return new Recording(stream)
}

/** `ended` resolves to a Blob of the browser's own format, after `stop` or the longest time. */
class Recording {
  #recorder
  #context = new AudioContext()
  #analyser
  #pieces = []
  #started = performance.now()

  constructor(stream) {
    this.#analyser = this.#context.createAnalyser()
    this.#context.createMediaStreamSource(stream).connect(this.#analyser)
    this.#recorder = new MediaRecorder(stream)
    this.#recorder.ondataavailable = event => this.#pieces.push(event.data)
    this.ended = new Promise(resolve => {
      this.#recorder.onstop = () => {
        stream.getTracks().forEach(track => track.stop())
        this.#context.close()
        resolve(new Blob(this.#pieces, {type: this.#recorder.mimeType}))
      }
    })
    this.#recorder.start()
    setTimeout(() => this.stop(), LONGEST * 1_000)
  }

  get seconds() {
    return (performance.now() - this.#started) / 1_000
  }

  /** From 0 to 1. */
  get level() {
    const wave = new Float32Array(this.#analyser.fftSize)
    this.#analyser.getFloatTimeDomainData(wave)
    return Math.min(1, 2 * wave.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0))
  }

  stop() {
    if (this.#recorder.state !== "inactive") this.#recorder.stop()
  }
}
