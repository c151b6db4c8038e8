// Mono samples that may still grow, their peaks, and WAV files of them.

import {SAMPLE_RATE} from "./api.js"

const PEAK_SAMPLES = 240  // 10 ms

/** Fires `grow` after each addition and once more when it is finished. */
export class Sound extends EventTarget {
  #samples = new Float32Array(SAMPLE_RATE)
  length = 0
  done = false
  /** The largest magnitude of every 10 ms. */
  peaks = []

  static of(samples) {
    const sound = new Sound()
    sound.push(samples)
    sound.finish()
    return sound
  }

  /** Of a 16-bit recording. */
  static of16(samples) {
    return Sound.of(Float32Array.from(samples, sample => sample / 32_768))
  }

  /** Of an audio file that the browser can decode. */
  static async decode(blob) {
    const decoded = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(await blob.arrayBuffer())
    const mixed = new Float32Array(decoded.length)
    for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
      decoded.getChannelData(channel).forEach((sample, i) => { mixed[i] += sample / decoded.numberOfChannels })
    }
    return Sound.of(mixed)
  }

  get samples() {
    return this.#samples.subarray(0, this.length)
  }

  get duration() {
    return this.length / SAMPLE_RATE
  }

  push(samples) {
    if (this.length + samples.length > this.#samples.length) {
      const larger = new Float32Array(2 * (this.length + samples.length))
      larger.set(this.samples)
      this.#samples = larger
    }
    this.#samples.set(samples, this.length)
    for (let i = 0; i < samples.length; i++) {
      const at = Math.floor((this.length + i) / PEAK_SAMPLES)
      this.peaks[at] = Math.max(this.peaks[at] ?? 0, Math.abs(samples[i]))
    }
    this.length += samples.length
    this.dispatchEvent(new Event("grow"))
  }

  finish() {
    this.done = true
    this.dispatchEvent(new Event("grow"))
  }

  to16() {
    return Int16Array.from(this.samples, sample => Math.round(Math.max(-1, Math.min(32_767 / 32_768, sample)) * 32_768))
  }

  toWav() {
    const samples = this.to16()
    const header = new DataView(new ArrayBuffer(44))
    const text = (at, letters) => [...letters].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)))
    text(0, "RIFF")
    header.setUint32(4, 36 + samples.byteLength, true)
    text(8, "WAVEfmt ")
    header.setUint32(16, 16, true)
    header.setUint16(20, 1, true)  // PCM
    header.setUint16(22, 1, true)  // channels
    header.setUint32(24, SAMPLE_RATE, true)
    header.setUint32(28, 2 * SAMPLE_RATE, true)  // bytes per second
    header.setUint16(32, 2, true)  // bytes per frame
    header.setUint16(34, 16, true)  // bits per sample
    text(36, "data")
    header.setUint32(40, samples.byteLength, true)
    return new Blob([header, samples], {type: "audio/wav"})
  }
}
