// A run in the list of results: its text, and a card for each take.

import {speechFile} from "./api.js"
import {confirmed} from "./confirm.js"
import {presetTitle} from "./parameters.js"
import {SoundView} from "./waveform.js"

const seconds = (value, digits = 1) => (value === null ? "–" : `${value.toFixed(digits)} s`)
const copy = id => document.getElementById(id).content.cloneNode(true).firstElementChild

export class RunView {
  #cards

  /** Callbacks: `again(run)`, `remove(run)`, `useSeed(seed)`. */
  constructor(run, {again, remove, useSeed}) {
    this.run = run
    this.element = copy("run-template")
    const text = run.takes[0].request.input
    this.element.setAttribute("aria-label", text.slice(0, 80))
    const time = new Date(run.created).toLocaleString([], {dateStyle: "medium", timeStyle: "short"})
    this.element.querySelector(".run-about").textContent = `${run.voice} · ${time}`
    this.element.querySelector(".again").addEventListener("click", () => again(run))
    confirmed(this.element.querySelector(".remove"), () => remove(run))
    const shown = new ShownText(this.element.querySelector(".run-text"), text)
    this.#cards = new Map(run.takes.map((take, i) => [take, new TakeView(take, run, i + 1, useSeed, shown)]))
    this.element.querySelector(".takes").append(...[...this.#cards.values()].map(card => card.element))
  }

  refresh(take) {
    this.#cards.get(take).refresh()
  }

  play(take) {
    this.#cards.get(take).sound.play()
  }
}

/** The text of a run, whose word that sounds is marked. */
class ShownText {
  #element
  #letters
  #marked = null

  constructor(element, text) {
    this.#element = element
    this.#letters = [...text]  // as the server counts characters
    element.textContent = text
  }

  /** Marks a word of a take, or none. */
  mark(word) {
    if (word === this.#marked) return
    this.#marked = word
    if (!word) {
      this.#element.textContent = this.#letters.join("")
      return
    }
    const [start, end] = word.span, part = (from, to) => this.#letters.slice(from, to).join("")
    const mark = document.createElement("mark")
    mark.textContent = part(start, end)
    this.#element.replaceChildren(part(0, start), mark, part(end))
  }
}

class TakeView {
  constructor(take, run, number, useSeed, shown) {
    this.take = take
    this.run = run
    this.element = copy("take-template")
    const {seed} = take.request
    const preset = presetTitle(take.preset)
    this.find("h3").textContent = run.takes.length > 1 ? `${number}. ${preset}` : preset
    this.find(".seed-of").textContent = `seed ${seed}`
    this.find(".seed-of").addEventListener("click", () => useSeed(seed))
    this.sound = new SoundView(this.find(".sound"), `take ${number}, ${preset}, seed ${seed}`, position => {
      const sounds = word => position !== null && word.start <= position && position < word.end
      shown.mark(take.words.find(sounds) ?? null)
    })
    this.sound.show(take.sound, take.expectedSeconds)
    this.find(".wav").addEventListener("click", () => download(take.sound.toWav(), `${this.fileName()}.wav`))
    this.find(".mp3").addEventListener("click", () => this.downloadMp3())
    this.refresh()
  }

  find(selector) {
    return this.element.querySelector(selector)
  }

  refresh() {
    const {take} = this
    this.element.dataset.state = take.state
    this.find(".length").textContent = take.sound.done && take.sound.length ? seconds(take.sound.duration) : "–"
    this.find(".ttfa").textContent = seconds(take.ttfa, 2)
    this.find(".rtf").textContent = take.rtf === null ? "–" : take.rtf.toFixed(2)
    this.find(".play").disabled = !take.sound.length
    this.find(".wav").disabled = !(take.sound.done && take.sound.length)
    this.find(".mp3").disabled = take.state !== "done"
    this.showError(take.error || (take.state === "stopped" ? "Stopped." : ""))
  }

  showError(message) {
    this.find(".error").textContent = message
    this.find(".error").hidden = !message
  }

  async downloadMp3() {
    const button = this.find(".mp3")
    button.disabled = true
    this.showError("")
    try {
      download(await speechFile(this.take.request, this.run.clip, "mp3"), `${this.fileName()}.mp3`)
    } catch (error) {
      this.showError(error.message)
    }
    button.disabled = false
  }

  /** The first words and the seed. */
  fileName() {
    const words = this.take.request.input.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["speech"]
    return [...words.slice(0, 4), this.take.request.seed].join("-")
  }
}

function download(blob, name) {
  const link = document.createElement("a")
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}
