// The voice: a stored one, or a clip that is recorded or uploaded.

import {addVoice, deleteVoice, voices} from "./api.js"
import {confirmed} from "./confirm.js"
import {startRecording} from "./recorder.js"
import {Sound} from "./sound.js"
import {SoundView} from "./waveform.js"

const CLIP = "\u0000clip"  // no stored voice can have this name
const GOOD_SECONDS = 5

const byId = id => document.getElementById(id)
const select = byId("voice")

export class VoicePicker {
  /** A Blob that can be cloned, or null. */
  clip = null
  #clipName = ""
  #recording = null
  #mayChange = false
  #failed
  #seconds = null  // of the clip; null where the browser cannot decode it

  /** form: `voice` is read and written; changed: called after each change; failed: called with an Error. */
  constructor(form, changed, failed) {
    this.form = form
    this.#failed = failed
    select.addEventListener("change", () => {
      form.voice = select.value
      this.#refresh()
      changed()
    })
    byId("record").addEventListener("click", () => this.#toggleRecording())
    byId("upload").addEventListener("click", () => byId("clip-file").click())
    byId("clip-file").addEventListener("change", event => this.#upload(event.target.files))
    byId("voice-form").addEventListener("submit", event => {
      event.preventDefault()
      this.#save(byId("voice-name").value)
    })
    confirmed(byId("delete-voice"), () => this.#delete())
    this.#acceptDrops(document.querySelector(".composer"))
  }

  /** Asks the server for its voices. mayChange: whether it stores and deletes voices. */
  async load(mayChange) {
    this.#mayChange = mayChange
    const names = await voices()
    const title = name => (name === "default" ? "Built-in voice" : name)
    select.replaceChildren(...names.map(name => new Option(title(name), name)))
    if (this.clip) select.append(new Option(`Clip: ${this.#clipName}`, CLIP))
    const known = [...select.options].some(option => option.value === this.form.voice)
    if (!known) this.form.voice = names[0]
    select.value = this.form.voice
    this.#refresh()
  }

  /** The voice of a request: its fields, the clip to send along, and a name to show. */
  get chosen() {
    if (this.form.voice === CLIP) return {fields: {voice: "default"}, clip: this.clip, name: this.#clipName}
    const {voice} = this.form
    return {fields: {voice}, clip: null, name: select.selectedOptions[0]?.textContent ?? voice}
  }

  /** Takes a voice from the history. */
  async take(voice, clip, name) {
    if (clip) await this.#useClip(clip, name)
    else if ([...select.options].some(option => option.value === voice)) this.form.voice = select.value = voice
    this.#refresh()
  }

  async #toggleRecording() {
    if (this.#recording) {
      this.#recording.stop()
      return
    }
    try {
      this.#recording = await startRecording()
      this.#showRecording(true)
      const clip = await this.#recording.ended
      const sound = await Sound.decode(clip)
      await this.#useClip(sound.toWav(), "recording")  // a recording's own header does not hold its length
    } catch (error) {
      this.#failed(error)
    } finally {
      this.#recording = null
      this.#showRecording(false)
    }
  }

  #showRecording(on) {
    byId("record").classList.toggle("on", on)
    byId("record").querySelector("span").textContent = on ? "Finish" : "Record"
    byId("recording").hidden = !on
    if (!on) return
    const frame = () => {
      if (!this.#recording) return
      byId("level").value = this.#recording.level
      byId("clock").textContent = `${this.#recording.seconds.toFixed(1)} s`
      requestAnimationFrame(frame)
    }
    frame()
  }

  async #upload(files) {
    if (!files.length) return
    await this.#useClip(files[0], files[0].name)
    byId("clip-file").value = ""  // so that the same file can be chosen again
  }

  async #useClip(clip, name) {
    this.clip = clip
    this.#clipName = name
    ;[...select.options].find(option => option.value === CLIP)?.remove()
    select.append(new Option(`Clip: ${name}`, CLIP))
    this.form.voice = select.value = CLIP
    const host = byId("clip")
    host.replaceChildren()
    const sound = await Sound.decode(clip).catch(() => null)  // the server reads formats that browsers cannot
    this.#seconds = sound?.duration ?? null
    if (sound) new SoundView(host, `clip ${name}`).show(sound)
    else host.append(`${name}: this browser cannot play it; the server may read it all the same.`)
    this.#refresh()
  }

  #refresh() {
    const isClip = this.form.voice === CLIP
    byId("clip").hidden = !isClip
    byId("save-voice").hidden = !(isClip && this.#mayChange)
    byId("delete-voice").hidden = isClip || !this.#mayChange || this.form.voice === "default"
    byId("voice-hint").textContent = isClip ? this.#advice() : ""
  }

  #advice() {
    if (this.#seconds === null) return ""
    const length = `${this.#seconds.toFixed(1)} s. `
    const short = "Ten seconds of one clear voice clone it better."
    return length + (this.#seconds < GOOD_SECONDS ? short : "Clone only voices that you may use.")
  }

  async #save(name) {
    await this.#change(async () => {
      await addVoice(name, this.clip)
      this.form.voice = name
      byId("voice-name").value = ""
    })
  }

  async #delete() {
    await this.#change(() => deleteVoice(this.form.voice))
    select.focus()
  }

  async #change(act) {
    try {
      await act()
      await this.load(this.#mayChange)
    } catch (error) {
      this.#failed(error)
    }
  }

  #acceptDrops(area) {
    area.addEventListener("dragover", event => {
      if ([...event.dataTransfer.items].some(item => item.kind === "file")) event.preventDefault()
    })
    area.addEventListener("drop", event => {
      if (!event.dataTransfer.files.length) return
      event.preventDefault()
      this.#upload(event.dataTransfer.files)
    })
  }
}
