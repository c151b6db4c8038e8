// A play button and a waveform of a sound, which is also the slider of its position.

import {isPlaying, play, stop} from "./player.js"

const BAR = 3  // pixels from bar to bar
const STEP = 0.5  // seconds that an arrow key moves

export class SoundView {
  #button
  #canvas
  #sound = null
  #position = 0  // seconds
  #expected = 0  // seconds

  #moved

  /** host: an empty element; name: what the sound is, for screen readers; moved: takes the position in seconds that is
   *  played, and null when it stops. */
  constructor(host, name, moved = () => {}) {
    this.#moved = moved
    host.append(document.getElementById("sound-template").content.cloneNode(true))
    this.#button = host.querySelector(".play")
    this.#canvas = host.querySelector(".wave")
    this.name = name
    this.#canvas.setAttribute("aria-label", `Position in ${name}`)
    this.#button.addEventListener("click", () => this.toggle())
    this.#canvas.addEventListener("click", event => this.#seekTo(event))
    this.#canvas.addEventListener("keydown", event => this.#key(event))
    new ResizeObserver(() => this.#draw()).observe(this.#canvas)
    this.#canvas.addEventListener("redraw", () => this.#draw())
    this.#showState(false)
  }

  /** expected: seconds that a growing sound will probably have, for its scale. */
  show(sound, expected = 0) {
    this.#sound = sound
    this.#expected = expected
    sound.addEventListener("grow", () => this.#draw())
    this.#draw()
  }

  toggle() {
    if (isPlaying(this.#sound)) stop()
    else this.play(this.#position < this.#sound.duration - 0.05 ? this.#position : 0)
  }

  play(from = 0) {
    this.#showState(true)
    play(this.#sound, from, {
      moved: position => {
        this.#move(position)
        this.#moved(position)
      },
      stopped: () => {
        this.#moved(null)
        this.#showState(false)
        if (this.#sound.done && this.#position > this.#sound.duration - 0.1) this.#move(0)
      },
    })
  }

  #showState(playing) {
    this.#button.classList.toggle("playing", playing)
    this.#button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${this.name}`)
  }

  #move(position) {
    this.#position = position
    this.#draw()
  }

  #jump(seconds) {
    const position = Math.max(0, Math.min(this.#sound.duration, seconds))
    this.#move(position)
    if (isPlaying(this.#sound)) this.play(position)
  }

  #seekTo(event) {
    this.#jump((event.offsetX / this.#canvas.clientWidth) * this.#scale())
  }

  #key(event) {
    const step = {ArrowLeft: -STEP, ArrowDown: -STEP, ArrowRight: STEP, ArrowUp: STEP}[event.key]
    if (step) this.#jump(this.#position + step)
    else if (event.key === "Home") this.#jump(0)
    else if (event.key === "End") this.#jump(this.#sound.duration)
    else if (event.key === " ") this.toggle()
    else return
    event.preventDefault()
  }

  #scale() {
    return this.#sound.done ? this.#sound.duration : Math.max(this.#expected, this.#sound.duration * 1.1)
  }

  #draw() {
    const canvas = this.#canvas, {clientWidth: width, clientHeight: height} = canvas
    const sound = this.#sound
    if (!sound || !width) return
    this.#describe()
    const style = getComputedStyle(canvas)
    const [played, ahead] = [style.getPropertyValue("--wave-played"), style.getPropertyValue("--wave")]
    const brush = clear(canvas)
    const bars = Math.floor(width / BAR), perBar = (this.#scale() * 100) / bars
    const loudest = sound.peaks.reduce((most, peak) => Math.max(most, peak), 0.2)
    for (let i = 0; i < bars; i++) {
      const first = Math.floor(i * perBar), next = Math.max(first + 1, Math.floor((i + 1) * perBar))
      const within = sound.peaks.slice(first, next)
      const size = within.length ? Math.max(2, (Math.max(...within) / loudest) * height) : 1
      brush.globalAlpha = within.length ? 1 : 0.45
      brush.fillStyle = (i * perBar) / 100 < this.#position ? played : ahead
      brush.fillRect(i * BAR, (height - size) / 2, BAR - 1, size)
    }
  }

  #describe() {
    const {duration} = this.#sound
    this.#canvas.setAttribute("aria-valuemax", duration.toFixed(1))
    this.#canvas.setAttribute("aria-valuenow", this.#position.toFixed(1))
    this.#canvas.setAttribute("aria-valuetext", `${this.#position.toFixed(1)} of ${duration.toFixed(1)} seconds`)
  }
}

/** A cleared brush whose unit is a pixel of the page. */
function clear(canvas) {
  const brush = canvas.getContext("2d"), ratio = devicePixelRatio
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map(length => Math.round(length * ratio))
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height})
  brush.setTransform(1, 0, 0, 1, 0, 0)
  brush.clearRect(0, 0, width, height)
  brush.scale(ratio, ratio)
  return brush
}
